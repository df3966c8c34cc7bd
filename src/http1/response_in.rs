//! The head of an engine's answer: what goes on to the client, how its body is framed, and whether
//! the connection can carry another request.

use http::header::HeaderMap;
use http::{Method, StatusCode};

use crate::framing::{Framing, HEAD_MAX, HEADERS_MAX, HeadError, Hops, check_lines, headers};
use crate::hop::{is_hop_by_hop, is_listed, switches_to_websocket};

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

/// The head at the beginning of `bytes`, the answer to a request with `method`. `None`: the rest of
/// it is still to come.
///
/// # Errors
/// [`HeadError`] if it can never become one.
pub fn read_answer(method: &Method, bytes: &[u8]) -> Result<Option<AnswerHead>, HeadError> {
    read(method, bytes, false)
}

/// The same for the answer to a websocket handshake. A 101 ends HTTP on the connection: what follows
/// its head is framed until the connection closes.
///
/// # Errors
/// [`HeadError`], also for a 101 that switches to another protocol.
pub fn read_upgrade(bytes: &[u8]) -> Result<Option<AnswerHead>, HeadError> {
    read(&Method::GET, bytes, true)
}

fn read(method: &Method, bytes: &[u8], upgrades: bool) -> Result<Option<AnswerHead>, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head.parse(bytes)? {
        httparse::Status::Complete(length) if length <= HEAD_MAX => length,
        httparse::Status::Partial if bytes.len() <= HEAD_MAX => return Ok(None),
        _ => return Err(HeadError::TooLarge),
    };
    check_lines(&bytes[..length])?;
    let code = head.code.unwrap_or_default();
    let status = StatusCode::from_u16(code).map_err(|_| httparse::Error::Status)?;
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    if switches && !(upgrades && switches_to_websocket(head.headers)) {
        return Err(HeadError::Switching);
    }
    let hops = Hops::of(head.headers, head.version == Some(1))?;
    if hops.identity && hops.length.is_none() {
        return Err(HeadError::Coding);
    }
    let fields = &*head.headers;
    let named = |name: &[u8]| {
        hops.names_more
            && fields.iter().any(|field| {
                field.name.eq_ignore_ascii_case("connection") && is_listed(field.value, name)
            })
    };
    let headers = headers(&bytes[..length], fields, |name| !is_hop_by_hop(name) && !named(name))?;
    let framing = if switches { Framing::UntilClose } else { framing(method, status, &hops) };
    // Of two framings chunks win, and the connection ends (RFC 9112, 6.3).
    let keeps_alive = hops.keeps_alive && framing != Framing::UntilClose && !hops.contradict();
    Ok(Some(AnswerHead { status, headers, framing, keeps_alive, length }))
}

fn framing(method: &Method, status: StatusCode, hops: &Hops) -> Framing {
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    match (bodiless, hops.chunked, hops.length) {
        (true, ..) => Framing::Length(0),
        (false, true, _) => Framing::Chunked,
        (false, false, Some(length)) => Framing::Length(length),
        (false, false, None) => Framing::UntilClose,
    }
}

#[cfg(test)]
#[path = "response_in_tests.rs"]
mod tests;
