//! Changes to a body: replace a top-level member's value, or append a member. It must never touch
//! another byte: order, white space, number formats and unknown members are the client's.

use crate::Scan;
use crate::body::Member;
use bytes::Bytes;

/// The members to set, each with its raw JSON value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits<'a> {
    members: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Edits<'a> {
    /// No change yet.
    pub fn new() -> Edits<'a> {
        Edits::default()
    }

    /// Sets `key` to `raw_json`, which must be one valid JSON value; a later call for the same key
    /// wins. `key` is written as it is: it must need no escape.
    pub fn set(&mut self, key: &'a str, raw_json: &'a [u8]) -> &mut Edits<'a> {
        match self.members.iter_mut().find(|(known, _)| *known == key) {
            Some(member) => member.1 = raw_json,
            None => self.members.push((key, raw_json)),
        }
        self
    }

    /// The changed body. Every occurrence of a member is replaced; one that the body lacks goes
    /// after the last. `scan` must be of this `body`. Without edits it is the same bytes, uncopied.
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
