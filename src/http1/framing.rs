//! What a head says of its connection and of where its body ends (RFC 9112, 6). The same for both
//! directions, but for what is made of it.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use httparse::Header;
use thiserror::Error;

use crate::hop::is_listed;

/// A larger head is refused.
pub const HEAD_MAX: usize = 64 << 10;
/// More than clients, engines and what stands between them send.
pub(crate) const HEADERS_MAX: usize = 100;

/// What came is no head of a message that can be read in one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// Not HTTP/1.
    #[error("it is not HTTP/1.1: {0}")]
    Malformed(#[from] httparse::Error),
    /// A line that ends without a carriage return. RFC 9112, 2.2 lets a reader accept it; readers
    /// that disagree on it have been used to smuggle requests.
    #[error("a line of its head ends in a bare line feed")]
    BareLf,
    /// HTTP, but neither 1.0 nor 1.1.
    #[error("it is HTTP of another version")]
    Version,
    /// Its length is given twice and differently, or is no number.
    #[error("its content-length is ambiguous")]
    Length,
    /// Two ways to end its body.
    #[error("it has both a content-length and a transfer-encoding")]
    Ambiguous,
    /// HTTP/1.1 without a host, or with several (RFC 9112, 3.2).
    #[error("it must name one host")]
    Host,
    /// A transfer coding other than chunks, or one where none can be.
    #[error("its transfer-encoding is not supported")]
    Coding,
    /// The engine took up an upgrade that nobody asked for.
    #[error("it switches protocols")]
    Switching,
    /// It does not end.
    #[error("its head is larger than {HEAD_MAX} bytes or has more than {HEADERS_MAX} headers")]
    TooLarge,
}

/// How a body ends (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes; 0 where there is no body.
    Length(u64),
    /// With a chunk of no length.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// What the headers of the connection say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hops {
    pub length: Option<u64>,
    pub chunked: bool,
    /// RFC 2616's word for no transfer coding; some servers still send it.
    pub identity: bool,
    pub keeps_alive: bool,
    /// `connection` names other headers.
    pub names_more: bool,
}

impl Hops {
    pub fn of(fields: &[Header<'_>], is_1_1: bool) -> Result<Hops, HeadError> {
        let mut hops = Hops {
            length: None,
            chunked: false,
            identity: false,
            keeps_alive: is_1_1,
            names_more: false,
        };
        let mut closes = false;
        for field in fields {
            if field.name.eq_ignore_ascii_case("content-length") {
                let length = decimal(field.value).ok_or(HeadError::Length)?;
                if hops.length.replace(length).is_some_and(|other| other != length) {
                    return Err(HeadError::Length);
                }
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                // Once, and nothing beside it: tidegate asks for no other coding (no `te`). A peer
                // of HTTP/1.0 cannot mean it (RFC 9112, 6.1).
                let value = field.value.trim_ascii();
                if hops.chunked || hops.identity {
                    return Err(HeadError::Coding);
                }
                hops.identity = value.eq_ignore_ascii_case(b"identity");
                hops.chunked = value.eq_ignore_ascii_case(b"chunked");
                if !(hops.identity || hops.chunked && is_1_1) {
                    return Err(HeadError::Coding);
                }
            } else if field.name.eq_ignore_ascii_case("connection") {
                closes |= is_listed(field.value, b"close");
                hops.keeps_alive |= is_listed(field.value, b"keep-alive");
                hops.names_more |= !(field.value.eq_ignore_ascii_case(b"close")
                    || field.value.eq_ignore_ascii_case(b"keep-alive"));
            }
        }
        hops.keeps_alive &= !closes;
        Ok(hops)
    }

    /// Two framings in one head are how messages are smuggled.
    pub fn contradict(&self) -> bool {
        self.chunked && self.length.is_some()
    }
}

/// Every line of a head must end in CR LF.
pub(crate) fn check_lines(head: &[u8]) -> Result<(), HeadError> {
    let bare = |at: usize| at == 0 || head[at - 1] != b'\r';
    match memchr::memchr_iter(b'\n', head).any(bare) {
        true => Err(HeadError::BareLf),
        false => Ok(()),
    }
}

/// Those of `fields` that `keep` wants, their values in one allocation: a copy of `head`, the bytes
/// that they were parsed from.
pub(crate) fn headers(
    head: &[u8],
    fields: &[Header<'_>],
    keep: impl Fn(&[u8]) -> bool,
) -> Result<HeaderMap, HeadError> {
    let copy = Bytes::copy_from_slice(head);
    let mut headers = HeaderMap::with_capacity(fields.len() + 1);
    for field in fields {
        let name = field.name.as_bytes();
        if !keep(name) {
            continue;
        }
        let name = HeaderName::from_bytes(name).map_err(|_| httparse::Error::HeaderName)?;
        let start = field.value.as_ptr() as usize - head.as_ptr() as usize;
        let value = copy.slice(start..start + field.value.len());
        let value =
            HeaderValue::from_maybe_shared(value).map_err(|_| httparse::Error::HeaderValue)?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}
