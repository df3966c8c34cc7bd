//! Parser of an engine's response head: forwarded headers, framing, and whether the connection can
//! be reused.

use http::header::HeaderMap;
use http::{Method, StatusCode};

use crate::framing::{
    ConnectionHeaders, Framing, HEAD_MAX, HEADERS_MAX, HeadError, check_lines, headers,
};
use crate::hop::{is_hop_by_hop, is_listed, switches_to_websocket};

/// A parsed response head.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// Status; after an informational one (1xx) another head follows.
    pub status: StatusCode,
    /// Headers without hop-by-hop headers.
    pub headers: HeaderMap,
    /// Framing of the body.
    pub framing: Framing,
    /// The connection can carry another request afterwards.
    pub keeps_alive: bool,
    /// Length of the head in bytes.
    pub length: usize,
}

/// Parses the head of the response to a request with `method`; `None` if it is incomplete.
///
/// # Errors
/// [`HeadError`] if the bytes are not a head.
pub fn read_response(method: &Method, bytes: &[u8]) -> Result<Option<ResponseHead>, HeadError> {
    read(method, bytes, false)
}

/// Parses the response to a websocket handshake. After a 101 the connection no longer carries HTTP;
/// what follows the head has [`Framing::UntilClose`].
///
/// # Errors
/// [`HeadError`], also for a 101 that switches to another protocol.
pub fn read_upgrade(bytes: &[u8]) -> Result<Option<ResponseHead>, HeadError> {
    read(&Method::GET, bytes, true)
}

fn read(method: &Method, bytes: &[u8], upgrades: bool) -> Result<Option<ResponseHead>, HeadError> {
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
    let connection = ConnectionHeaders::of(head.headers, head.version == Some(1))?;
    if connection.identity && connection.length.is_none() {
        return Err(HeadError::Coding);
    }
    let fields = &*head.headers;
    let named = |name: &[u8]| {
        connection.lists_headers
            && fields.iter().any(|field| {
                field.name.eq_ignore_ascii_case("connection") && is_listed(field.value, name)
            })
    };
    let headers = headers(&bytes[..length], fields, |name| !is_hop_by_hop(name) && !named(name))?;
    let framing = if switches { Framing::UntilClose } else { framing(method, status, &connection) };
    // With both framings chunked wins and the connection is closed (RFC 9112, 6.3).
    let keeps_alive =
        connection.keeps_alive && framing != Framing::UntilClose && !connection.has_two_framings();
    Ok(Some(ResponseHead { status, headers, framing, keeps_alive, length }))
}

fn framing(method: &Method, status: StatusCode, connection: &ConnectionHeaders) -> Framing {
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    match (bodiless, connection.chunked, connection.length) {
        (true, ..) => Framing::Length(0),
        (false, true, _) => Framing::Chunked,
        (false, false, Some(length)) => Framing::Length(length),
        (false, false, None) => Framing::UntilClose,
    }
}

#[cfg(test)]
#[path = "response_in_tests.rs"]
mod tests;
