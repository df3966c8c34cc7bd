//! Usage injection. Requests to vLLM get the option for usage in every chunk, for exact token counts;
//! the client receives only the usage that it requested itself. The filter also corrects the cached-token
//! count: a decode engine reports all transferred tokens as cached, so that they are replaced by
//! the prefill engine's count.
//!
//! Bytes are removed from events; events are not rebuilt. Only an incomplete event is held back,
//! which no client could parse before its blank line.
//!
//! One member is lost: vLLM puts `system_fingerprint` into the last chunk of a stream. With usage
//! requested that is the usage chunk, which is removed.
//!
//! `handoff_redaction.rs` explains why a search for the quoted key suffices.

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use std::sync::LazyLock;
use tidegate_types::Tokens;

use crate::{ColocatedReason, Edits, Scan};

static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""usage":"#));
static CACHED: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""cached_tokens":"#));
static NO_CHOICES: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""choices":[]"#));
/// Limit of a held event in bytes; a longer one passes unchanged, because usage does not occur after
/// that many bytes.
const HELD_MAX: usize = 1 << 20;

/// Usage that the client requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageRequest {
    /// None.
    Never,
    /// Once, at the end.
    Final,
    /// In every chunk.
    Every,
}

impl UsageRequest {
    /// Reads a request's `stream_options`.
    pub fn of(scan: &Scan, body: &[u8]) -> UsageRequest {
        let options = options(scan, body);
        let is_true =
            |key: &str| options.get(key).and_then(serde_json::Value::as_bool) == Some(true);
        match (is_true("include_usage"), is_true("continuous_usage_stats")) {
            (false, _) => UsageRequest::Never,
            (true, false) => UsageRequest::Final,
            (true, true) => UsageRequest::Every,
        }
    }
}

/// Returns the body with usage requested in every chunk. `None` if the client requests it already,
/// if the answer is not a token stream, or if it has several choices (each would be counted alone).
pub fn inject_usage_request(body: &Bytes, scan: &Scan) -> Option<Bytes> {
    let streams = scan.stream && scan.endpoint.is_completion() && scan.n == 1;
    // The engine's reading of an odd `stream` or `stream_options` is unknown.
    let is_odd = scan.colocated == Some(ColocatedReason::OddValue);
    if !streams || is_odd || UsageRequest::of(scan, body) == UsageRequest::Every {
        return None;
    }
    let mut options = options(scan, body);
    options.insert("include_usage".to_owned(), true.into());
    options.insert("continuous_usage_stats".to_owned(), true.into());
    let options = serde_json::to_vec(&options).ok()?;
    Some(Edits::new().set("stream_options", &options).apply(body, scan))
}

fn options(scan: &Scan, body: &[u8]) -> serde_json::Map<String, serde_json::Value> {
    let raw = scan.value(body, "stream_options").unwrap_or_default();
    serde_json::from_slice(raw).unwrap_or_default()
}

/// Removes usage that the client did not request, and corrects the cached-token count.
#[derive(Debug)]
pub struct UsageFilter {
    request: UsageRequest,
    cached: Option<Tokens>,
    /// The incomplete event.
    held: BytesMut,
}

impl UsageFilter {
    /// Creates a filter for one stream. `cached`: the prefill engine's count, for a split request.
    pub fn new(request: UsageRequest, cached: Option<Tokens>) -> UsageFilter {
        UsageFilter { request, cached, held: BytesMut::new() }
    }

    /// Filters the next chunk. The result is the same `Bytes` unless something is removed or held.
    pub fn pass(&mut self, chunk: Bytes) -> Bytes {
        let all = if self.held.is_empty() {
            chunk
        } else {
            self.held.extend_from_slice(&chunk);
            self.held.split().freeze()
        };
        let complete = events_end(&all);
        if all.len() - complete > HELD_MAX {
            return all;
        }
        self.held.extend_from_slice(&all[complete..]);
        self.edited(all.slice(..complete))
    }

    /// Returns whether no bytes are held back.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Returns the held bytes at the end of the stream.
    pub fn rest(&mut self) -> Option<Bytes> {
        let rest = self.held.split().freeze();
        (!rest.is_empty()).then(|| self.edited(rest))
    }

    fn edited(&self, events: Bytes) -> Bytes {
        let cut = self.request != UsageRequest::Every && USAGE.find(&events).is_some();
        let corrects = self.cached.is_some() && CACHED.find(&events).is_some();
        if !cut && !corrects {
            return events;
        }
        let mut out = Vec::with_capacity(events.len() + 16);
        let mut rest = &events[..];
        while !rest.is_empty() {
            let end = event_end(rest).unwrap_or(rest.len());
            self.event(&rest[..end], &mut out);
            rest = &rest[end..];
        }
        Bytes::from(out)
    }

    fn event(&self, event: &[u8], out: &mut Vec<u8>) {
        // Line ends before an event belong to it or to the one before, depending on the split.
        let lead = event.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let (lead, event) = event.split_at(lead);
        out.extend_from_slice(lead);
        let last = NO_CHOICES.find(event).is_some();
        let usage = usage_member(event);
        match (self.request, last, usage) {
            // The event contains nothing but usage.
            (UsageRequest::Never, true, Some(_)) => {}
            (UsageRequest::Never, false, Some((start, end)))
            | (UsageRequest::Final, false, Some((start, end))) => {
                out.extend_from_slice(&event[..start]);
                out.extend_from_slice(&event[end..]);
            }
            _ => replace_cached(event, self.cached, out),
        }
    }
}

/// Corrects the cached-token count of an unstreamed answer.
pub fn correct_cached_tokens(answer: Bytes, cached: Option<Tokens>) -> Bytes {
    if cached.is_none() || CACHED.find(&answer).is_none() {
        return answer;
    }
    let mut out = Vec::with_capacity(answer.len() + 16);
    replace_cached(&answer, cached, &mut out);
    Bytes::from(out)
}

/// Copies `json` with every numeric `cached_tokens` replaced.
fn replace_cached(json: &[u8], cached: Option<Tokens>, out: &mut Vec<u8>) {
    let mut rest = json;
    while let (Some(cached), Some(at)) = (cached, CACHED.find(rest)) {
        let value = at + CACHED.needle().len();
        let space = rest[value..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let digits = rest[value + space..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        out.extend_from_slice(&rest[..value + space]);
        if digits > 0 {
            out.extend_from_slice(cached.get().to_string().as_bytes());
        }
        rest = &rest[value + space + digits..];
    }
    out.extend_from_slice(rest);
}

/// Returns the range of the event's `usage` member with one adjacent comma; only if its value is an
/// object or null.
fn usage_member(event: &[u8]) -> Option<(usize, usize)> {
    let mut from = 0;
    loop {
        let key = from + USAGE.find(&event[from..])?;
        let value = key + USAGE.needle().len();
        from = value;
        let Some(end) = value_end(&event[value..]).map(|length| value + length) else { continue };
        // In the outermost object exactly one brace is still open.
        if !closes_once(&event[end..]) {
            continue;
        }
        let before = event[..key].trim_ascii_end();
        if before.ends_with(b",") {
            return Some((before.len() - 1, end));
        }
        let space = event[end..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let comma = usize::from(event.get(end + space) == Some(&b','));
        return Some((key, end + space * comma + comma));
    }
}

/// Returns the length of the object or null that starts here.
fn value_end(json: &[u8]) -> Option<usize> {
    let space = json.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let value = &json[space..];
    if value.starts_with(b"null") {
        return Some(space + 4);
    }
    if !value.starts_with(b"{") {
        return None;
    }
    let mut depth = 0_u32;
    let mut tracker = StringTracker::default();
    for (at, byte) in value.iter().enumerate() {
        match tracker.outside(*byte) {
            Some(b'{' | b'[') => depth += 1,
            Some(b'}' | b']') => {
                depth -= 1;
                if depth == 0 {
                    return Some(space + at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// Returns whether the rest of the event closes exactly one bracket that it did not open.
fn closes_once(rest: &[u8]) -> bool {
    let mut depth = 0_i32;
    let mut tracker = StringTracker::default();
    for byte in rest {
        match tracker.outside(*byte) {
            Some(b'{' | b'[') => depth += 1,
            Some(b'}' | b']') => depth -= 1,
            _ => {}
        }
    }
    depth == -1
}

/// Distinguishes bytes inside and outside of strings.
#[derive(Default)]
struct StringTracker {
    in_string: bool,
    escaped: bool,
}

impl StringTracker {
    /// Returns the byte if it is outside of strings.
    fn outside(&mut self, byte: u8) -> Option<u8> {
        if std::mem::take(&mut self.escaped) {
            return None;
        }
        match byte {
            b'\\' if self.in_string => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            _ if !self.in_string => return Some(byte),
            _ => {}
        }
        None
    }
}

/// End of the last complete event.
fn events_end(bytes: &[u8]) -> usize {
    let blank = |end: &[u8]| memchr::memmem::rfind(bytes, end).map_or(0, |at| at + end.len());
    blank(b"\n\n").max(blank(b"\r\n\r\n"))
}

/// End of the first complete event.
fn event_end(bytes: &[u8]) -> Option<usize> {
    let blank = |end: &[u8]| memchr::memmem::find(bytes, end).map(|at| at + end.len());
    match (blank(b"\n\n"), blank(b"\r\n\r\n")) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
#[path = "usage_injection_tests.rs"]
mod tests;
