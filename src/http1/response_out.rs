//! Writer of a response head for a client, and of chunk framing.

use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, TRANSFER_ENCODING};
use http::{Method, StatusCode};
use std::time::{Duration, UNIX_EPOCH};

/// Interim response 100 (RFC 9110, 10.1.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// The chunk of size 0 that ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Framing of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFraming {
    /// No body: the response to HEAD, a 204 or a 304.
    None,
    /// `content-length`, in bytes.
    Length(u64),
    /// Chunked coding.
    Chunked,
    /// The body ends when the connection closes; the only framing of unknown length in HTTP/1.0.
    UntilClose,
    /// A 101: the connection carries a websocket afterwards.
    Websocket,
}

impl ResponseFraming {
    /// Chooses the framing for a body of `length` bytes (`None`: unknown).
    pub fn choose(
        method: &Method,
        status: StatusCode,
        length: Option<u64>,
        is_1_1: bool,
    ) -> ResponseFraming {
        let bodiless = *method == Method::HEAD
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        match (bodiless, length, is_1_1) {
            (true, ..) => ResponseFraming::None,
            (false, Some(length), _) => ResponseFraming::Length(length),
            (false, None, true) => ResponseFraming::Chunked,
            (false, None, false) => ResponseFraming::UntilClose,
        }
    }
}

/// Writes a response head. Framing headers in `headers` are ignored. `date` is called if `headers`
/// has no date.
///
/// ```
/// use http::{HeaderMap, StatusCode};
/// use tidegate_http1::{ResponseFraming, Date, write_response};
///
/// let framing = ResponseFraming::Length(2);
/// let head = write_response(StatusCode::OK, &HeaderMap::new(), framing, true, true, || Date::at(0.0));
/// let date = "date: Thu, 01 Jan 1970 00:00:00 GMT";
/// assert_eq!(head, format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{date}\r\n\r\n").as_bytes());
/// ```
pub fn write_response(
    status: StatusCode,
    headers: &HeaderMap,
    framing: ResponseFraming,
    is_1_1: bool,
    keeps_alive: bool,
    date: impl FnOnce() -> Date,
) -> Vec<u8> {
    let length = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let mut head = Vec::with_capacity(length.sum::<usize>() + 160);
    let version = if is_1_1 { "HTTP/1.1 " } else { "HTTP/1.0 " };
    put(&mut head, &[version, status.as_str(), " "]);
    put(&mut head, &[status.canonical_reason().unwrap_or_default(), "\r\n"]);
    for (name, value) in headers {
        if [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name) {
            continue;
        }
        put(&mut head, &[name.as_str(), ": "]);
        head.extend_from_slice(value.as_bytes());
        put(&mut head, &["\r\n"]);
    }
    match framing {
        ResponseFraming::Length(length) => {
            let mut digits = itoa::Buffer::new();
            put(&mut head, &["content-length: ", digits.format(length), "\r\n"]);
        }
        ResponseFraming::Chunked => put(&mut head, &["transfer-encoding: chunked\r\n"]),
        ResponseFraming::None | ResponseFraming::UntilClose | ResponseFraming::Websocket => {}
    }
    match (framing, keeps_alive, is_1_1) {
        (ResponseFraming::Websocket, ..) => {
            put(&mut head, &["connection: Upgrade\r\nupgrade: websocket\r\n"]);
        }
        (_, true, true) => {}
        (_, true, false) => put(&mut head, &["connection: keep-alive\r\n"]),
        (_, false, _) => put(&mut head, &["connection: close\r\n"]),
    }
    if !headers.contains_key(DATE) {
        put(&mut head, &["date: ", date().as_str(), "\r\n"]);
    }
    put(&mut head, &["\r\n"]);
    head
}

/// An HTTP date (RFC 9110, 5.6.7), to be cached for one second: formatting it costs as much as the
/// rest of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    second: u64,
    text: [u8; Date::LENGTH],
}

impl Date {
    const LENGTH: usize = "Thu, 01 Jan 1970 00:00:00 GMT".len();
    /// The end of the year 9999, the last HTTP date, in seconds since 1970.
    const MAX: u64 = 253_402_300_799;

    /// Formats `now`, in seconds since 1970.
    pub fn at(now: f64) -> Date {
        let second = Date::second(now);
        let written = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
        let mut text = [b' '; Date::LENGTH];
        for (to, from) in text.iter_mut().zip(written.bytes()) {
            *to = from;
        }
        Date { second, text }
    }

    /// Returns this date if `now` is in the same second, else the date of `now`.
    #[must_use]
    pub fn or_at(self, now: f64) -> Date {
        if self.second == Date::second(now) { self } else { Date::at(now) }
    }

    fn second(now: f64) -> u64 {
        (now.max(0.0) as u64).min(Date::MAX)
    }

    fn as_str(&self) -> &str {
        // The bytes were copied from a string.
        std::str::from_utf8(&self.text).unwrap_or_default()
    }
}

fn put(head: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        head.extend_from_slice(part.as_bytes());
    }
}

/// Size line of a chunk, written before its data; `\r\n` follows the data.
#[derive(Clone, Copy, Debug)]
pub struct ChunkFrame {
    digits: [u8; ChunkFrame::MAX],
    from: usize,
}

impl ChunkFrame {
    /// Sixteen hex digits and CR LF.
    const MAX: usize = 18;

    /// Formats the size line of a chunk of `length` bytes, at least 1 (0 would end the body).
    pub fn new(length: usize) -> ChunkFrame {
        let mut digits = [0; ChunkFrame::MAX];
        let mut from = ChunkFrame::MAX - 2;
        digits[from..].copy_from_slice(b"\r\n");
        let mut left = length;
        while left > 0 && from > 0 {
            from -= 1;
            digits[from] = b"0123456789abcdef"[left % 16];
            left /= 16;
        }
        ChunkFrame { digits, from }
    }

    /// Returns the size line.
    pub fn as_bytes(&self) -> &[u8] {
        &self.digits[self.from..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::BodyReader;
    use crate::framing::Framing;
    use crate::read_response;
    use http::header::HeaderValue;
    use proptest::prelude::*;

    fn head(framing: ResponseFraming, is_1_1: bool, keeps_alive: bool) -> String {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_static("b"));
        headers.insert("connection", HeaderValue::from_static("close"));
        headers.insert("content-length", HeaderValue::from_static("999"));
        let date = || Date::at(784_111_777.9);
        let bytes = write_response(StatusCode::OK, &headers, framing, is_1_1, keeps_alive, date);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_head_has_one_framing_header() {
        assert_eq!(
            head(ResponseFraming::Length(5), true, true),
            "HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 5\r\n\
             date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
        );
        assert_eq!(
            head(ResponseFraming::Chunked, true, false),
            "HTTP/1.1 200 OK\r\nx-a: b\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\
             date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
        );
        let old = head(ResponseFraming::Length(0), false, true);
        assert!(old.starts_with("HTTP/1.0 ") && old.contains("connection: keep-alive\r\n"));
        let switched = head(ResponseFraming::Websocket, true, false);
        assert!(switched.contains("connection: Upgrade\r\nupgrade: websocket\r\n"));
        assert!(!switched.contains("close") && !switched.contains("content-length"));
        let none = head(ResponseFraming::None, true, true);
        assert!(!none.contains("content-length") && !none.contains("transfer-encoding"));
    }

    #[test]
    fn framing_follows_method_status_and_version() {
        let choose = ResponseFraming::choose;
        let (ok, get) = (StatusCode::OK, Method::GET);
        assert_eq!(choose(&get, ok, Some(3), true), ResponseFraming::Length(3));
        assert_eq!(choose(&get, ok, None, true), ResponseFraming::Chunked);
        assert_eq!(choose(&get, ok, None, false), ResponseFraming::UntilClose);
        assert_eq!(choose(&Method::HEAD, ok, Some(3), true), ResponseFraming::None);
        assert_eq!(choose(&get, StatusCode::NO_CONTENT, Some(0), true), ResponseFraming::None);
    }

    #[test]
    fn an_engines_date_is_kept() {
        let mut headers = HeaderMap::new();
        headers.insert("date", HeaderValue::from_static("then"));
        let none = ResponseFraming::None;
        let bytes = write_response(StatusCode::OK, &headers, none, true, true, || unreachable!());
        assert_eq!(bytes, b"HTTP/1.1 200 OK\r\ndate: then\r\n\r\n");
    }

    #[test]
    fn a_date_is_reformatted_once_a_second() {
        let date = Date::at(784_111_777.1);
        assert_eq!(date.or_at(784_111_777.9), date);
        assert_eq!(date.or_at(784_111_778.0).as_str(), "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(date.or_at(784_111_776.9).as_str(), "Sun, 06 Nov 1994 08:49:36 GMT");
        assert_eq!(Date::at(-1.0).as_str(), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(Date::at(1e300).as_str(), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    proptest! {
        /// Round trip: written chunks decode to the same data.
        #[test]
        fn written_chunks_decode_to_the_same_data(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..6)
        ) {
            let headers = HeaderMap::new();
            let chunked = ResponseFraming::Chunked;
            let mut wire = write_response(StatusCode::OK, &headers, chunked, true, true, || Date::at(0.0));
            for chunk in &chunks {
                for part in [ChunkFrame::new(chunk.len()).as_bytes(), chunk, b"\r\n"] {
                    wire.extend_from_slice(part);
                }
            }
            wire.extend_from_slice(LAST_CHUNK);
            let head = read_response(&Method::GET, &wire).unwrap().unwrap();
            prop_assert_eq!(head.framing, Framing::Chunked);
            let mut reader = BodyReader::new(head.framing);
            let body = &mut wire[head.length..];
            let piece = reader.read(body).unwrap();
            prop_assert!(reader.is_done());
            prop_assert_eq!(piece.consumed, body.len());
            prop_assert_eq!(&body[piece.data], chunks.concat());
        }

        #[test]
        fn a_chunk_size_is_hexadecimal(length in 1usize..) {
            let text = format!("{length:x}\r\n");
            let frame = ChunkFrame::new(length);
            prop_assert_eq!(frame.as_bytes(), text.as_bytes());
        }
    }
}
