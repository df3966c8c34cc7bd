//! Top-level members of a JSON object and their spans. It must never recurse: the depth of a body
//! is chosen by the client.
//!
//! serde_json decides what is valid. `json_scanner` handles most bodies in a third of the time.

use super::{JsonBodyError, Span, json_scanner};
use crate::json_string::string_end;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Nesting limit of serde_json, and so of every later parser of the body.
const DEPTH_MAX: usize = 127;

/// Initial capacity; most chat bodies have fewer members.
pub(super) const MEMBERS_USUAL: usize = 16;

/// One top-level member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    /// Raw key, without quotes.
    key: Span,
    /// The key contains escapes.
    escaped: bool,
    /// Raw value.
    pub(crate) value: Span,
}

/// All top-level members in order, repeated ones included.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    list: Vec<Member>,
    /// Insertion point: after the last value, or after `{`.
    pub(crate) end: u32,
}

impl Members {
    /// Scans the body: with `json_scanner`, and with serde_json where that is undecided.
    pub(crate) fn read(body: &[u8]) -> Result<Members, JsonBodyError> {
        if u32::try_from(body.len()).is_err() {
            return Err(JsonBodyError::new("The request body is larger than 4 GiB."));
        }
        let quick =
            || simdutf8::basic::from_utf8(body).ok().and_then(|_| json_scanner::members(body));
        match quick() {
            Some(list) if !list.is_empty() => {
                let end = list.last().map_or(0, |last| last.value.end);
                Ok(Members { list, end })
            }
            _ => Members::by_serde(body),
        }
    }

    /// Scans the body with serde_json.
    pub(super) fn by_serde(body: &[u8]) -> Result<Members, JsonBodyError> {
        let text = simdutf8::compat::from_utf8(body)
            .map_err(|error| JsonBodyError::new(format!("The body is not UTF-8: {error}.")))?;
        // RFC 8259, 8.1 allows to skip a byte order mark; Windows tools write one.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mark = body.len() - text.len();
        let Some(open) = text.find(|c| !matches!(c, ' ' | '\t' | '\n' | '\r')) else {
            return Err(JsonBodyError::new("The body is empty: a JSON object is required."));
        };
        let pass = Pass { base: body.as_ptr() as usize, end: (mark + open) as u32 + 1 };
        let mut json = serde_json::Deserializer::from_str(text);
        let members = json.deserialize_map(pass).and_then(|members| json.end().map(|()| members));
        let members = members.map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                JsonBodyError::new("The body must be a JSON object.")
            }
            _ => JsonBodyError::new(format!("The body is not valid JSON: {error}.")),
        })?;
        if too_deep(body) {
            let message = format!("The body is nested deeper than {DEPTH_MAX} levels.");
            return Err(JsonBodyError::new(message));
        }
        Ok(members)
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Member> {
        self.list.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl Member {
    /// Creates a member from its key (with quotes, at `at`) and value.
    pub(super) fn new(key: &[u8], at: Span, value: Span) -> Member {
        Member {
            key: Span { start: at.start + 1, end: at.end - 1 },
            escaped: memchr::memchr(b'\\', key).is_some(),
            value,
        }
    }

    /// Returns whether the member has this name.
    pub(crate) fn is(&self, body: &[u8], name: &str) -> bool {
        let length = (self.key.end - self.key.start) as usize;
        (self.escaped || length == name.len()) && *self.name(body) == *name.as_bytes()
    }

    #[cfg(test)]
    pub(super) fn written(&self) -> (Span, Span) {
        (Span { start: self.key.start - 1, end: self.key.end + 1 }, self.value)
    }

    /// Returns the unescaped name.
    pub(crate) fn name<'a>(&self, body: &'a [u8]) -> Cow<'a, [u8]> {
        if !self.escaped {
            return Cow::Borrowed(self.key.of(body));
        }
        // A key with an unpaired surrogate is none that tidegate reads; it is returned as written.
        let quoted = Span { start: self.key.start - 1, end: self.key.end + 1 };
        match quoted.text(body) {
            Some(name) => Cow::Owned(name.into_owned().into_bytes()),
            None => Cow::Borrowed(self.key.of(body)),
        }
    }
}

/// Returns the value of a raw JSON string; `None` for other types.
pub(crate) fn text(raw: &[u8]) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr::memchr2(b'\\', b'"', inner).is_none() {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice::<String>(raw).ok().map(Cow::Owned)
}

struct Pass {
    /// Address of the body's first byte.
    base: usize,
    end: u32,
}

impl Pass {
    fn span(&self, raw: &RawValue) -> Span {
        let start = raw.get().as_ptr() as usize - self.base;
        Span { start: start as u32, end: (start + raw.get().len()) as u32 }
    }
}

impl<'de> Visitor<'de> for Pass {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Members, A::Error> {
        let mut list = Vec::with_capacity(MEMBERS_USUAL);
        while let Some(key) = map.next_key::<&RawValue>()? {
            let quoted = self.span(key);
            let value = self.span(map.next_value::<&RawValue>()?);
            self.end = value.end;
            list.push(Member::new(key.get().as_bytes(), quoted, value));
        }
        Ok(Members { list, end: self.end })
    }
}

/// Returns whether valid JSON is nested deeper than [`DEPTH_MAX`]. serde_json skips values without
/// recursion and without its limit, but parses them with one later.
fn too_deep(json: &[u8]) -> bool {
    // Upper bound of the depth: the count of opening brackets. `[` and `{` differ in one bit;
    // byte-wide sums over short runs are vectorised, which is 10 times as fast.
    let run = |bytes: &[u8]| bytes.iter().map(|byte| u8::from(byte | 0x20 == b'{')).sum::<u8>();
    if json.chunks(u8::MAX as usize).map(|bytes| usize::from(run(bytes))).sum::<usize>()
        <= DEPTH_MAX
    {
        return false;
    }
    let (mut depth, mut at) = (0, 0);
    while let Some(byte) = json.get(at) {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            b'"' => at = string_end(json, at + 1).unwrap_or(json.len()),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return true;
        }
        at += 1;
    }
    false
}
