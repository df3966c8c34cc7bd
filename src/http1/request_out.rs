//! The head of a request to an engine, written once and sent as it is.

use http::Method;
use http::uri::PathAndQuery;

/// Longer than most heads: one allocation.
const USUAL: usize = 512;

/// A head under way. Names and values must come from `http`'s types, or be constants: they are
/// written as they are.
#[derive(Clone, Debug)]
pub struct RequestHeadWriter {
    bytes: Vec<u8>,
    method: Method,
}

impl RequestHeadWriter {
    /// The request line.
    pub fn new(method: &Method, target: &PathAndQuery) -> RequestHeadWriter {
        let mut bytes = Vec::with_capacity(USUAL);
        for part in [method.as_str(), " ", target.as_str(), " HTTP/1.1\r\n"] {
            bytes.extend_from_slice(part.as_bytes());
        }
        RequestHeadWriter { bytes, method: method.clone() }
    }

    /// One header. A value with a line end in it, which would be two, is left out.
    pub fn header(&mut self, name: &str, value: &[u8]) {
        if value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return;
        }
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.bytes.extend_from_slice(part);
        }
    }

    /// The end of the head of a request whose body has that many bytes. A method that is made for a
    /// body tells that there is none (RFC 9110, 8.6).
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
    fn a_head_is_a_line_headers_and_the_length_of_the_body() {
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
    fn only_a_method_made_for_a_body_tells_that_there_is_none() {
        let target = PathAndQuery::from_static("/");
        let head = |method| text(RequestHeadWriter::new(&method, &target), 0);
        assert_eq!(head(Method::GET), "GET / HTTP/1.1\r\n\r\n");
        assert_eq!(head(Method::POST), "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n");
    }
}
