//! Edits of a JSON body: set top-level members. It must never change another byte: order, white
//! space, number formats and unknown members stay as the client sent them.

use crate::Scan;
use crate::body::Member;
use bytes::Bytes;

/// Members to set, with their raw JSON values.
///
/// ```
/// use bytes::Bytes;
/// use tidegate_engine::{Edits, Endpoint, scan};
///
/// let body = Bytes::from(r#"{"model": "m",  "max_tokens": 64}"#);
/// let scan = scan(Endpoint::Completions, &body)?;
/// let edited = Edits::new().set("max_tokens", b"1").set("stream", b"false").apply(&body, &scan);
/// assert_eq!(edited, r#"{"model": "m",  "max_tokens": 1,"stream":false}"#);
/// # Ok::<(), tidegate_engine::JsonBodyError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits<'a> {
    members: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Edits<'a> {
    /// Creates an empty set of edits.
    pub fn new() -> Edits<'a> {
        Edits::default()
    }

    /// Sets `key` to `raw_json`, one valid JSON value; a later call for the same key wins. `key`
    /// must need no JSON escape.
    pub fn set(&mut self, key: &'a str, raw_json: &'a [u8]) -> &mut Edits<'a> {
        match self.members.iter_mut().find(|(known, _)| *known == key) {
            Some(member) => member.1 = raw_json,
            None => self.members.push((key, raw_json)),
        }
        self
    }

    /// Applies the edits to `body`, of which `scan` must be the scan. Every occurrence of a member
    /// is replaced; an absent member is appended. Without edits the result shares the body's bytes.
    pub fn apply(&self, body: &Bytes, scan: &Scan) -> Bytes {
        if self.members.is_empty() {
            return body.clone();
        }
        let room: usize = self.members.iter().map(|(key, raw)| key.len() + raw.len() + 4).sum();
        let mut out = Vec::with_capacity(body.len() + room);
        let mut copied = 0;
        for member in scan.members.iter() {
            if let Some((_, raw)) = self.of(body, member) {
                out.extend_from_slice(between(body, copied, member.value.start));
                out.extend_from_slice(raw);
                copied = member.value.end;
            }
        }
        out.extend_from_slice(between(body, copied, scan.members.end));
        let mut first = scan.members.is_empty();
        for (key, raw) in &self.members {
            if scan.members.iter().any(|member| member.is(body, key)) {
                continue;
            }
            out.extend_from_slice(if first { b"\"" } else { b",\"" });
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(raw);
            first = false;
        }
        out.extend_from_slice(between(body, scan.members.end, body.len() as u32));
        Bytes::from(out)
    }

    fn of(&self, body: &[u8], member: &Member) -> Option<&(&'a str, &'a [u8])> {
        self.members.iter().find(|(key, _)| member.is(body, key))
    }
}

fn between(body: &[u8], start: u32, end: u32) -> &[u8] {
    body.get(start as usize..end as usize).unwrap_or_default()
}

#[cfg(test)]
#[path = "edits_tests.rs"]
mod tests;
