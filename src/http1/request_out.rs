//! Writer of a request head for an engine.

use http::Method;
use http::uri::PathAndQuery;

/// Initial capacity in bytes; most heads fit.
const USUAL: usize = 512;

/// A request head being written. Names and values are written unchecked: they must come from
/// `http`'s types or be constants.
#[derive(Clone, Debug)]
pub struct RequestHeadWriter {
    bytes: Vec<u8>,
    method: Method,
}

impl RequestHeadWriter {
    /// Starts the head with its request line.
    pub fn new(method: &Method, target: &PathAndQuery) -> RequestHeadWriter {
        let mut bytes = Vec::with_capacity(USUAL);
        for part in [method.as_str(), " ", target.as_str(), " HTTP/1.1\r\n"] {
            bytes.extend_from_slice(part.as_bytes());
        }
        RequestHeadWriter { bytes, method: method.clone() }
    }

    /// Adds a header. A value with CR, LF or NUL is dropped (header injection).
    pub fn header(&mut self, name: &str, value: &[u8]) {
        if value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return;
        }
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.bytes.extend_from_slice(part);
        }
    }

    /// Ends the head of a request with a body of `body` bytes. POST, PUT and PATCH get
    /// `content-length: 0` for an empty body (RFC 9110, 8.6).
    pub fn end(mut self, body: usize) -> (Method, Vec<u8>) {
        let expects = matches!(self.method, Method::POST | Method::PUT | Method::PATCH);
        if body > 0 || expects {
            self.header("content-length", itoa::Buffer::new().format(body).as_bytes());
        }
        self.bytes.extend_from_slice(b"\r\n");
        (self.method, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(head: RequestHeadWriter, body: usize) -> String {
        String::from_utf8(head.end(body).1).unwrap()
    }

    #[test]
    fn a_head_is_a_request_line_headers_and_a_content_length() {
        let target = PathAndQuery::from_static("/v1/completions?a=b");
        let mut head = RequestHeadWriter::new(&Method::POST, &target);
        head.header("host", b"engine:1");
        head.header("x-bad", b"a\r\nhost: other");
        assert_eq!(
            text(head, 12),
            "POST /v1/completions?a=b HTTP/1.1\r\nhost: engine:1\r\ncontent-length: 12\r\n\r\n"
        );
    }

    #[test]
    fn content_length_zero_is_sent_only_for_methods_that_expect_a_body() {
        let target = PathAndQuery::from_static("/");
        let head = |method| text(RequestHeadWriter::new(&method, &target), 0);
        assert_eq!(head(Method::GET), "GET / HTTP/1.1\r\n\r\n");
        assert_eq!(head(Method::POST), "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n");
    }
}
