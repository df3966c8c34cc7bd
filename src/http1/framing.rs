//! Connection and framing headers of a message head (RFC 9112, 6), for requests and responses.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use httparse::Header;
use thiserror::Error;

use crate::hop::is_listed;

/// Largest accepted head, in bytes.
pub const HEAD_MAX: usize = 64 << 10;
/// Largest accepted number of headers.
pub(crate) const HEADERS_MAX: usize = 100;

/// The bytes are not a message head, or not an unambiguous one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// Not HTTP/1.
    #[error("the head is not HTTP/1.1: {0}")]
    Malformed(#[from] httparse::Error),
    /// A line ends in a bare LF. RFC 9112, 2.2 allows a reader to accept it; request smuggling
    /// exploits readers that differ on it.
    #[error("a line of the head ends in a bare line feed")]
    BareLf,
    /// An HTTP version other than 1.0 and 1.1.
    #[error("the HTTP version is not supported")]
    Version,
    /// `content-length` is not a number, or is given twice with different values.
    #[error("the content-length is ambiguous")]
    Length,
    /// Both `content-length` and `transfer-encoding`.
    #[error("the head has both a content-length and a transfer-encoding")]
    Ambiguous,
    /// An HTTP/1.1 request without `host`, or any request with several (RFC 9112, 3.2).
    #[error("the head must have exactly one host header")]
    Host,
    /// A transfer coding other than `chunked`, or one that the message may not have.
    #[error("the transfer-encoding is not supported")]
    Coding,
    /// The engine answered 101 to a request that asked for no upgrade, or switched to another
    /// protocol.
    #[error("the response switches protocols")]
    Switching,
    /// More than [`HEAD_MAX`] bytes or `HEADERS_MAX` headers.
    #[error("the head is larger than {HEAD_MAX} bytes or has more than {HEADERS_MAX} headers")]
    TooLarge,
}

/// How the end of a body is determined (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `content-length`, in bytes; 0 for a message without a body.
    Length(u64),
    /// Chunked coding; ends with the chunk of size 0.
    Chunked,
    /// The body ends when the connection closes.
    UntilClose,
}

/// Parsed connection and framing headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionHeaders {
    pub length: Option<u64>,
    pub chunked: bool,
    /// `transfer-encoding: identity` (RFC 2616: no coding), which some servers still send.
    pub identity: bool,
    pub keeps_alive: bool,
    /// `connection` lists further headers.
    pub lists_headers: bool,
}

impl ConnectionHeaders {
    pub fn of(fields: &[Header<'_>], is_1_1: bool) -> Result<ConnectionHeaders, HeadError> {
        let mut connection = ConnectionHeaders {
            length: None,
            chunked: false,
            identity: false,
            keeps_alive: is_1_1,
            lists_headers: false,
        };
        let mut closes = false;
        for field in fields {
            if field.name.eq_ignore_ascii_case("content-length") {
                let length = decimal(field.value).ok_or(HeadError::Length)?;
                if connection.length.replace(length).is_some_and(|other| other != length) {
                    return Err(HeadError::Length);
                }
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                // Accepted once and alone: tidegate requests no other coding (no `te`), and an
                // HTTP/1.0 peer cannot use chunked coding (RFC 9112, 6.1).
                let value = field.value.trim_ascii();
                if connection.chunked || connection.identity {
                    return Err(HeadError::Coding);
                }
                connection.identity = value.eq_ignore_ascii_case(b"identity");
                connection.chunked = value.eq_ignore_ascii_case(b"chunked");
                if !(connection.identity || connection.chunked && is_1_1) {
                    return Err(HeadError::Coding);
                }
            } else if field.name.eq_ignore_ascii_case("connection") {
                closes |= is_listed(field.value, b"close");
                connection.keeps_alive |= is_listed(field.value, b"keep-alive");
                connection.lists_headers |= !(field.value.eq_ignore_ascii_case(b"close")
                    || field.value.eq_ignore_ascii_case(b"keep-alive"));
            }
        }
        connection.keeps_alive &= !closes;
        Ok(connection)
    }

    /// Returns whether the head has both framings, as in request smuggling.
    pub fn has_two_framings(&self) -> bool {
        self.chunked && self.length.is_some()
    }
}

/// Checks that every line of a head ends in CR LF.
pub(crate) fn check_lines(head: &[u8]) -> Result<(), HeadError> {
    let bare = |at: usize| at == 0 || head[at - 1] != b'\r';
    match memchr::memchr_iter(b'\n', head).any(bare) {
        true => Err(HeadError::BareLf),
        false => Ok(()),
    }
}

/// Returns the headers whose name passes `keep`. Their values share one allocation, a copy of
/// `head`, the bytes that `fields` were parsed from.
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
