//! Parser of a client's request head: target, framing, and whether the connection stays open.

use http::header::HeaderMap;
use http::{Method, Uri};

use crate::framing::{
    ConnectionHeaders, Framing, HEAD_MAX, HEADERS_MAX, HeadError, check_lines, headers,
};
use crate::hop::switches_to_websocket;

/// A parsed request head.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// Request method.
    pub method: Method,
    /// Request target in any form (RFC 9112, 3.2).
    pub uri: Uri,
    /// All headers, hop-by-hop headers included.
    pub headers: HeaderMap,
    /// Framing of the body; never [`Framing::UntilClose`].
    pub framing: Framing,
    /// `expect: 100-continue` from an HTTP/1.1 client.
    pub expects_continue: bool,
    /// HTTP/1.1, so that the client understands chunked coding.
    pub is_1_1: bool,
    /// The connection may carry another request.
    pub keeps_alive: bool,
    /// A websocket handshake (RFC 6455, 4.1).
    pub upgrades: bool,
    /// Length of the head in bytes.
    pub length: usize,
}

/// Parses the head at the start of `bytes`; `None` if it is incomplete.
///
/// ```
/// use tidegate_http1::{Framing, read_request};
///
/// let bytes = b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{}";
/// let head = read_request(bytes)?.expect("a complete head");
/// assert_eq!((head.uri.path(), head.framing), ("/v1/completions", Framing::Length(2)));
/// assert_eq!(&bytes[head.length..], b"{}");
/// # Ok::<(), tidegate_http1::HeadError>(())
/// ```
///
/// # Errors
/// [`HeadError`] if the bytes are not a head, or an ambiguous one.
pub fn read_request(bytes: &[u8]) -> Result<Option<RequestHead>, HeadError> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => length,
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(httparse::Error::Version) => return Err(HeadError::Version),
        Err(error) => return Err(error.into()),
    };
    check_lines(&bytes[..length])?;
    let is_1_1 = head.version == Some(1);
    let connection = ConnectionHeaders::of(head.headers, is_1_1)?;
    // A reader that does not know `identity` would take the body for the next request.
    if connection.identity {
        return Err(HeadError::Coding);
    }
    if connection.has_two_framings() {
        return Err(HeadError::Ambiguous);
    }
    let hosts = head.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host")).count();
    if hosts > 1 || (is_1_1 && hosts == 0) {
        return Err(HeadError::Host);
    }
    let method = head.method.unwrap_or_default();
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| httparse::Error::Token)?;
    let uri = head.path.unwrap_or_default().parse().map_err(|_| httparse::Error::Token)?;
    let expects_continue = is_1_1
        && head.headers.iter().any(|field| {
            field.name.eq_ignore_ascii_case("expect")
                && field.value.eq_ignore_ascii_case(b"100-continue")
        });
    let headers = headers(&bytes[..length], head.headers, |_| true)?;
    let framing = match (connection.chunked, connection.length) {
        (true, _) => Framing::Chunked,
        (false, length) => Framing::Length(length.unwrap_or(0)),
    };
    let keeps_alive = connection.keeps_alive;
    let upgrades = is_1_1
        && method == Method::GET
        && framing == Framing::Length(0)
        && switches_to_websocket(head.headers);
    Ok(Some(RequestHead {
        method,
        uri,
        headers,
        framing,
        expects_continue,
        is_1_1,
        keeps_alive,
        upgrades,
        length,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(text: &str) -> RequestHead {
        read_request(text.as_bytes()).unwrap().unwrap()
    }

    fn refused(more: &str) -> HeadError {
        let text = format!("POST /v1/completions HTTP/1.1\r\nhost: h\r\n{more}\r\n\r\n");
        read_request(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_request_head_is_parsed() {
        let text = "POST /v1/completions?a=b HTTP/1.1\r\nHost: x\r\nX-Two: 1\r\nx-two: 2\r\n\
                    Content-Length: 2\r\n\r\n{}";
        for end in 0..text.len() - 2 {
            assert!(read_request(&text.as_bytes()[..end]).unwrap().is_none(), "{end}");
        }
        let asked = asked(text);
        assert_eq!((asked.method, asked.uri.path()), (Method::POST, "/v1/completions"));
        assert_eq!(asked.uri.query(), Some("a=b"));
        assert_eq!(asked.headers.get_all("x-two").iter().count(), 2);
        assert_eq!(asked.framing, Framing::Length(2));
        assert!(asked.keeps_alive && asked.is_1_1 && !asked.expects_continue);
        assert_eq!(&text[asked.length..], "{}");
    }

    #[test]
    fn a_request_without_a_length_has_no_body() {
        assert_eq!(asked("GET / HTTP/1.1\r\nhost: h\r\n\r\n").framing, Framing::Length(0));
        let chunks = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(asked(chunks).framing, Framing::Chunked);
    }

    #[test]
    fn targets_of_every_form_are_parsed() {
        for (target, path) in [("http://h:1/a?b", "/a"), ("*", "*"), ("/a", "/a"), ("h:1", "")] {
            assert_eq!(
                asked(&format!("GET {target} HTTP/1.1\r\nhost: h\r\n\r\n")).uri.path(),
                path
            );
        }
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for (more, error) in [
            ("content-length: 1\r\ncontent-length: 2", HeadError::Length),
            ("content-length: 1, 1", HeadError::Length),
            ("content-length: -1", HeadError::Length),
            ("content-length: 99999999999999999999", HeadError::Length),
            ("content-length: 1\r\ntransfer-encoding: chunked", HeadError::Ambiguous),
            ("transfer-encoding: gzip", HeadError::Coding),
            ("host: other", HeadError::Host),
            ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", HeadError::Coding),
            ("transfer-encoding: xchunked", HeadError::Coding),
        ] {
            assert_eq!(refused(more), error, "{more}");
        }
        for more in ["a : b", " a: b", "a: b\r\n c", "a: b\0c", "no header", "é: 1"] {
            assert!(matches!(refused(more), HeadError::Malformed(_)), "{more:?}");
        }
        assert_eq!(read_request(b"GET / HTTP/1.1\r\n\r\n").unwrap_err(), HeadError::Host);
        assert!(read_request(b"GET / HTTP/1.0\r\n\r\n").is_ok(), "HTTP/1.0 requires no host");
        let old = b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(read_request(old).unwrap_err(), HeadError::Coding);
    }

    #[test]
    fn a_bare_line_feed_is_refused() {
        for head in [
            "GET / HTTP/1.1\nhost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: h\n\r\n",
            "GET / HTTP/1.1\r\nhost: h\r\nx: y\nz: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: h\r\n\n",
            "GET / HTTP/1.1\nhost: h\n\n",
            "\nGET / HTTP/1.1\r\nhost: h\r\n\r\n",
        ] {
            assert_eq!(read_request(head.as_bytes()).unwrap_err(), HeadError::BareLf, "{head:?}");
        }
        assert!(read_request(b"\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n").is_ok());
    }

    #[test]
    fn an_oversized_head_is_refused() {
        let long = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(HEAD_MAX));
        assert_eq!(read_request(long.as_bytes()).unwrap_err(), HeadError::TooLarge);
        assert_eq!(refused(&"x: y\r\n".repeat(HEADERS_MAX + 1)), HeadError::TooLarge);
    }

    #[test]
    fn keep_alive_follows_version_and_connection_header() {
        let goes_on = |head: &str| asked(&format!("GET / {head}\r\nhost: h\r\n\r\n")).keeps_alive;
        assert!(goes_on("HTTP/1.1"));
        assert!(!goes_on("HTTP/1.1\r\nconnection: close"));
        assert!(!goes_on("HTTP/1.0"));
        assert!(goes_on("HTTP/1.0\r\nconnection: keep-alive"));
    }

    #[test]
    fn a_websocket_handshake_is_an_http_1_1_get_without_a_body() {
        let upgrades = |head: &str| asked(&format!("{head}\r\nhost: h\r\n\r\n")).upgrades;
        let both = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket";
        assert!(upgrades(&format!("GET /v1/realtime HTTP/1.1\r\n{both}")));
        assert!(upgrades(&format!("GET / HTTP/1.1\r\n{both}\r\ncontent-length: 0")));
        for head in [
            format!("GET / HTTP/1.0\r\n{both}"),
            format!("POST / HTTP/1.1\r\n{both}"),
            format!("GET / HTTP/1.1\r\n{both}\r\ncontent-length: 1"),
            format!("GET / HTTP/1.1\r\n{both}\r\ntransfer-encoding: chunked"),
            "GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c".to_owned(),
            "GET / HTTP/1.1\r\nupgrade: websocket".to_owned(),
            "GET / HTTP/1.1\r\nconnection: upgrade".to_owned(),
        ] {
            assert!(!upgrades(&head), "{head}");
        }
    }

    #[test]
    fn only_http_1_1_clients_expect_100_continue() {
        let waits = |version: &str| {
            asked(&format!("POST / {version}\r\nhost: h\r\nExpect: 100-Continue\r\n\r\n"))
                .expects_continue
        };
        assert!(waits("HTTP/1.1"));
        assert!(!waits("HTTP/1.0"));
    }

    proptest! {
        /// Arbitrary bytes are parsed or refused; a parsed head lies within them.
        #[test]
        fn arbitrary_bytes_are_parsed_or_refused(
            begin in prop_oneof![Just(""), Just("GET / HTTP/1.1\r\n"), Just("POST / HTTP/1.0\r\n")],
            rest in proptest::collection::vec(
                prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b'a'), any::<u8>()], 0..80
            ),
        ) {
            let bytes = [begin.as_bytes(), &rest].concat();
            if let Ok(Some(head)) = read_request(&bytes) {
                prop_assert!(head.length <= bytes.len());
            }
        }
    }
}
