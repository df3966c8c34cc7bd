//! The head of an engine's answer: what goes on to the client, how its body is framed, and whether
//! the connection can carry another request.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use thiserror::Error;

use crate::body::Framing;
use crate::hop::{is_hop_by_hop, is_listed};

/// A larger head is refused.
pub const HEAD_MAX: usize = 64 << 10;
/// As many headers as engines, and what stands before them, send many times over.
const HEADERS_MAX: usize = 100;

/// An answer's head.
#[derive(Clone, Debug)]
pub struct AnswerHead {
    /// Its status; an informational one (1xx) is followed by another head.
    pub status: StatusCode,
    /// Its headers, without those of the connection.
    pub headers: HeaderMap,
    /// How its body ends.
    pub framing: Framing,
    /// May the connection carry another request after it?
    pub keeps_alive: bool,
    /// Bytes that the head took.
    pub length: usize,
}

/// What came is no head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// Not HTTP/1.
    #[error("the answer is not HTTP: {0}")]
    Malformed(#[from] httparse::Error),
    /// Its length is given twice and differently, or is no number.
    #[error("the answer's content-length is ambiguous")]
    Length,
    /// A transfer coding that tidegate did not ask for.
    #[error("the answer has an unknown transfer-encoding")]
    Coding,
    /// The engine took up an upgrade that nobody asked for.
    #[error("the answer switches protocols")]
    Switching,
    /// It does not end.
    #[error("the answer's head is larger than {HEAD_MAX} bytes")]
    TooLarge,
}

/// The head at the beginning of `bytes`, the answer to a request with `method`. `None`: the rest of
/// it is still to come.
///
/// # Errors
/// [`HeadError`] if it can never become one.
pub fn read_answer(method: &Method, bytes: &[u8]) -> Result<Option<AnswerHead>, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head.parse(bytes)? {
        httparse::Status::Complete(length) if length <= HEAD_MAX => length,
        httparse::Status::Partial if bytes.len() <= HEAD_MAX => return Ok(None),
        _ => return Err(HeadError::TooLarge),
    };
    let code = head.code.unwrap_or_default();
    let status = StatusCode::from_u16(code).map_err(|_| httparse::Error::Status)?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(HeadError::Switching);
    }
    let hops = Hops::of(head.headers, head.version == Some(1))?;
    // One allocation for all values.
    let shared = Bytes::copy_from_slice(&bytes[..length]);
    let mut headers = HeaderMap::with_capacity(head.headers.len() + 1);
    for field in head.headers.iter() {
        let name = field.name.as_bytes();
        if is_hop_by_hop(name) || hops.names(head.headers, name) {
            continue;
        }
        let name = HeaderName::from_bytes(name).map_err(|_| httparse::Error::HeaderName)?;
        let value = HeaderValue::from_maybe_shared(shared.slice_ref(slot(bytes, &shared, field)))
            .map_err(|_| httparse::Error::HeaderValue)?;
        headers.append(name, value);
    }
    let framing = hops.framing(method, status);
    let keeps_alive = hops.keeps_alive && framing != Framing::UntilClose;
    Ok(Some(AnswerHead { status, headers, framing, keeps_alive, length }))
}

/// The same bytes within the copy.
fn slot<'a>(bytes: &[u8], copy: &'a Bytes, field: &httparse::Header<'_>) -> &'a [u8] {
    let start = field.value.as_ptr() as usize - bytes.as_ptr() as usize;
    &copy[start..start + field.value.len()]
}

/// What the headers of the connection say.
struct Hops {
    length: Option<u64>,
    chunked: bool,
    keeps_alive: bool,
    /// `connection` names other headers.
    names_more: bool,
}

impl Hops {
    fn of(fields: &[httparse::Header<'_>], is_1_1: bool) -> Result<Hops, HeadError> {
        let mut hops =
            Hops { length: None, chunked: false, keeps_alive: is_1_1, names_more: false };
        let mut closes = false;
        for field in fields {
            if field.name.eq_ignore_ascii_case("content-length") {
                let length = decimal(field.value).ok_or(HeadError::Length)?;
                if hops.length.replace(length).is_some_and(|other| other != length) {
                    return Err(HeadError::Length);
                }
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                // Once, and nothing beside it: tidegate asks for no other coding (no `te`).
                if hops.chunked || !field.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadError::Coding);
                }
                hops.chunked = true;
            } else if field.name.eq_ignore_ascii_case("connection") {
                closes |= is_listed(field.value, b"close");
                hops.keeps_alive |= is_listed(field.value, b"keep-alive");
                hops.names_more |= !matches!(field.value.len(), 5 | 10);
            }
        }
        // Two framings in one head are how requests are smuggled: chunks win, and the connection
        // ends (RFC 9112, 6.3).
        hops.keeps_alive &= !(closes || hops.chunked && hops.length.is_some());
        // A server of HTTP/1.0 cannot mean it (RFC 9112, 6.1).
        if hops.chunked && !is_1_1 {
            return Err(HeadError::Coding);
        }
        Ok(hops)
    }

    /// Does `connection` name this header?
    fn names(&self, fields: &[httparse::Header<'_>], name: &[u8]) -> bool {
        self.names_more
            && fields.iter().any(|field| {
                field.name.eq_ignore_ascii_case("connection") && is_listed(field.value, name)
            })
    }

    fn framing(&self, method: &Method, status: StatusCode) -> Framing {
        let bodiless = *method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        match (bodiless, self.chunked, self.length) {
            (true, ..) => Framing::Length(0),
            (false, true, _) => Framing::Chunked,
            (false, false, Some(length)) => Framing::Length(length),
            (false, false, None) => Framing::UntilClose,
        }
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
