//! Filter 1: request id and trace context, the client's if valid. It must never refuse a request,
//! nor accept a header that could forge a log line.

use crate::FreshIds;
use http::{HeaderMap, HeaderName};
use std::fmt;
use std::num::NonZeroU64;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Longest `x-request-id` accepted, in bytes: two UUIDs and a prefix.
const REQUEST_ID_MAX: usize = 128;

/// Length in bytes of a `traceparent` of version 00 (W3C Trace Context §3.2).
const TRACEPARENT_LEN: usize = 55;

/// The sampled flag of a `traceparent` (§3.2.2.5.1).
const SAMPLED: u8 = 1;

/// A valid W3C `traceparent` of version 00.
#[derive(Clone, PartialEq, Eq)]
pub struct Traceparent {
    text: String,
    /// The client's span.
    parent: Option<NonZeroU64>,
}

/// Returns the request's id and trace context. Infallible, so that refusals have an id too.
pub fn identify(headers: &HeaderMap, fresh: &FreshIds) -> (String, Traceparent) {
    (request_id(headers, fresh), traceparent(headers, fresh))
}

/// Returns the client's `x-request-id` if it is visible ASCII of 1 to 128 bytes, else a new id.
/// vLLM's P2pNccl and MoRI connectors read peer addresses from ids of the form
/// `___prefill_addr_HOST:PORT___decode_addr_HOST:PORT_…`, which a client must not choose.
pub fn request_id(headers: &HeaderMap, fresh: &FreshIds) -> String {
    match single(headers, &X_REQUEST_ID).filter(|id| is_valid_id(id)) {
        Some(id) => id.to_owned(),
        None => {
            let mut id = String::with_capacity(32);
            push_hex(&mut id, fresh.request, 32);
            id
        }
    }
}

fn traceparent(headers: &HeaderMap, fresh: &FreshIds) -> Traceparent {
    match single(headers, &TRACEPARENT).and_then(parse) {
        Some(client) => {
            let sampled = fresh.sampler.samples(client.trace, Some(client.flags & SAMPLED != 0));
            let flags = client.flags & !SAMPLED | u8::from(sampled);
            let own = Traceparent::new(client.trace, fresh.span, flags);
            Traceparent { parent: NonZeroU64::new(client.parent), ..own }
        }
        None => {
            let sampled = fresh.sampler.samples(fresh.trace.max(1), None);
            Traceparent::new(fresh.trace, fresh.span, u8::from(sampled))
        }
    }
}

impl Traceparent {
    fn new(trace: u128, span: u64, flags: u8) -> Traceparent {
        // An id of zeros is invalid (§3.2.2.3); its probability is 2^-64.
        let (trace, span) = (trace.max(1), span.max(1));
        let mut text = String::with_capacity(TRACEPARENT_LEN);
        for (before, value, digits) in
            [("00-", trace, 32), ("-", u128::from(span), 16), ("-", u128::from(flags), 2)]
        {
            text.push_str(before);
            push_hex(&mut text, value, digits);
        }
        Traceparent { text, parent: None }
    }

    /// The header's value: `00-TRACE-SPAN-FLAGS`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trace's id: 32 hex digits.
    pub fn trace_id(&self) -> &str {
        self.text.get(3..35).unwrap_or_default()
    }

    /// The id of tidegate's span: 16 hex digits.
    pub fn span_id(&self) -> &str {
        self.text.get(36..52).unwrap_or_default()
    }

    /// The id of the client's span; `None` if the trace begins here.
    pub fn parent(&self) -> Option<u64> {
        self.parent.map(NonZeroU64::get)
    }

    /// Whether the trace is sampled.
    pub fn is_sampled(&self) -> bool {
        // The last digit of the flags: sampled is bit 0.
        self.text.as_bytes().last().is_some_and(|digit| matches!(digit, b'1' | b'3'))
    }
}

impl AsRef<str> for Traceparent {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The client's trace context.
struct ClientTrace {
    trace: u128,
    parent: u64,
    flags: u8,
}

/// Parses by §3.2 and §4.3: a later version is read as 00 if its fields are in the same positions.
fn parse(value: &str) -> Option<ClientTrace> {
    let bytes = value.as_bytes();
    let version = hex(bytes.get(..2)?)?;
    let rest_fits = match version {
        0x00 => bytes.len() == TRACEPARENT_LEN,
        0xff => false,
        _ => bytes.len() == TRACEPARENT_LEN || bytes.get(TRACEPARENT_LEN) == Some(&b'-'),
    };
    let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
    if !rest_fits || !dashes {
        return None;
    }
    let (trace, parent) = (hex(&bytes[3..35])?, hex(&bytes[36..52])?);
    let flags = hex(&bytes[53..55])?;
    // Only flags that version 00 defines may be forwarded: sampled, and random (level 2).
    let known = (flags & 0b11) as u8;
    let parent = parent as u64;
    (trace != 0 && parent != 0).then_some(ClientTrace { trace, parent, flags: known })
}

/// Parses lower-case hex digits, as the standard requires.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0_u128, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

/// Appends the last `digits` (an even number) hex digits of `value` in lower case. `format!` took
/// 4,000 instructions for the ids of one request.
fn push_hex(text: &mut String, value: u128, digits: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut all = [0; 32];
    let bytes = value.to_be_bytes();
    for (pair, byte) in all.chunks_exact_mut(2).zip(&bytes[16 - digits / 2..]) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    // Digits are always UTF-8.
    text.push_str(std::str::from_utf8(&all[..digits]).unwrap_or_default());
}

/// Returns a header that occurs once; repeated ones are not trusted.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(str::trim),
        _ => None,
    }
}

fn is_valid_id(id: &str) -> bool {
    (1..=REQUEST_ID_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_graphic())
        && !id.contains("_addr_")
}

#[cfg(test)]
mod tests;
