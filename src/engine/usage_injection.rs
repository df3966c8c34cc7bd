//! Exact token counts: vLLM is asked for the usage so far in every chunk, and the client gets only
//! what it asked for itself. And the truth about cached tokens: a decode engine that was handed all
//! of a prompt's KV reports all of it as cached; what the prefill engine found in its cache is what
//! the client wants to know.
//!
//! Bytes are cut out of events, events are never rebuilt. Only an event that is not yet complete is
//! held back: no client can read one before its blank line.
//!
//! One thing is lost: vLLM puts `system_fingerprint` into the last chunk of a stream; once it is asked
//! for usage that is the usage chunk, which is cut out.
//!
//! Why a search for the quoted key is enough: see `leak`.

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use std::sync::LazyLock;
use tidegate_types::Tokens;

use crate::{Edits, Scan, WholeReason};

static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""usage":"#));
static CACHED: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""cached_tokens":"#));
static NO_CHOICES: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""choices":[]"#));
/// An event that grows beyond this passes as it is: no usage is so far from its beginning.
const HELD_MAX: usize = 1 << 20;

/// Which usages the client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageRequest {
    /// None.
    Never,
    /// One, at the end.
    Final,
    /// One in every chunk.
    Every,
}

impl UsageRequest {
    /// Of a request.
    pub fn of(scan: &Scan, body: &[u8]) -> UsageRequest {
        let options = options(scan, body);
        let says = |key: &str| options.get(key).and_then(serde_json::Value::as_bool) == Some(true);
        match (says("include_usage"), says("continuous_usage_stats")) {
            (false, _) => UsageRequest::Never,
            (true, false) => UsageRequest::Final,
            (true, true) => UsageRequest::Every,
        }
    }
}

/// The body that asks for the usage so far in every chunk; `None` if it does already, if the answer
/// is no stream of tokens, or has several choices (each would count its own).
pub fn inject_usage_request(body: &Bytes, scan: &Scan) -> Option<Bytes> {
    let streams = scan.stream && scan.endpoint.is_completion() && scan.n == 1;
    // What `stream` or `stream_options` is to such an engine, only the engine knows.
    let is_odd = scan.whole == Some(WholeReason::OddValue);
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

/// Cuts out of a stream what the client did not ask for, and tells it the truth about the cache.
#[derive(Debug)]
pub struct UsageFilter {
    request: UsageRequest,
    cached: Option<Tokens>,
    /// The event that is not complete.
    held: BytesMut,
}

impl UsageFilter {
    /// For one stream, from its first byte. `cached`: what the prefill engine said, if the request
    /// was split.
    pub fn new(request: UsageRequest, cached: Option<Tokens>) -> UsageFilter {
        UsageFilter { request, cached, held: BytesMut::new() }
    }

    /// The next bytes, as the client may see them: the same, uncopied, unless something is cut.
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

    /// Is nothing held back?
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The stream has ended: what was held back.
    pub fn rest(&mut self) -> Option<Bytes> {
        let rest = self.held.split().freeze();
        (!rest.is_empty()).then(|| self.edited(rest))
    }

    fn edited(&self, events: Bytes) -> Bytes {
        let cut = self.request != UsageRequest::Every && USAGE.find(&events).is_some();
        let lie = self.cached.is_some() && CACHED.find(&events).is_some();
        if !cut && !lie {
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
        let last = NO_CHOICES.find(event).is_some();
        let usage = usage_member(event);
        match (self.request, last, usage) {
            // Nothing else is in it.
            (UsageRequest::Never, true, Some(_)) => {}
            (UsageRequest::Never, false, Some((start, end)))
            | (UsageRequest::Final, false, Some((start, end))) => {
                out.extend_from_slice(&event[..start]);
                out.extend_from_slice(&event[end..]);
            }
            _ => tell_cached(event, self.cached, out),
        }
    }
}

/// An answer that is no stream, with the truth about the cache.
pub fn with_cached(answer: Bytes, cached: Option<Tokens>) -> Bytes {
    if cached.is_none() || CACHED.find(&answer).is_none() {
        return answer;
    }
    let mut out = Vec::with_capacity(answer.len() + 16);
    tell_cached(&answer, cached, &mut out);
    Bytes::from(out)
}

/// Copies `json` with every `cached_tokens` that is a number replaced.
fn tell_cached(json: &[u8], cached: Option<Tokens>, out: &mut Vec<u8>) {
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

/// Where the `usage` of an event's object is, with one of the commas beside it. Only one whose value
/// is an object or null.
fn usage_member(event: &[u8]) -> Option<(usize, usize)> {
    let mut from = 0;
    loop {
        let key = from + USAGE.find(&event[from..])?;
        let value = key + USAGE.needle().len();
        from = value;
        let Some(end) = value_end(&event[value..]).map(|length| value + length) else { continue };
        // A member of the outermost object: one brace is open after it.
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

/// How long the object or null is that begins here.
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

/// Is exactly one brace closed in the rest of the event that it did not open?
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

/// Tells what is within strings from what is not.
#[derive(Default)]
struct StringTracker {
    in_string: bool,
    escaped: bool,
}

impl StringTracker {
    /// The byte, if it is outside of strings.
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

/// Where the last complete event ends.
fn events_end(bytes: &[u8]) -> usize {
    let blank = |end: &[u8]| memchr::memmem::rfind(bytes, end).map_or(0, |at| at + end.len());
    blank(b"\n\n").max(blank(b"\r\n\r\n"))
}

/// Where the first complete event ends.
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
