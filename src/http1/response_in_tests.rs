//! Parsing of response heads.

use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Result<Option<ResponseHead>, HeadError> {
    read_response(&Method::POST, text.as_bytes())
}

fn head(text: &str) -> ResponseHead {
    read(text).unwrap().unwrap()
}

#[test]
fn a_response_head_is_parsed() {
    let text = "HTTP/1.1 200 OK\r\ndate: x\r\nserver: uvicorn\r\nX-Two: 1\r\nx-two: 2\r\n\
                content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n4\r\n";
    let head = head(text);
    assert_eq!(head.status, StatusCode::OK);
    assert_eq!(head.framing, Framing::Chunked);
    assert!(head.keeps_alive);
    assert_eq!(&text[head.length..], "4\r\n");
    assert_eq!(head.headers["content-type"], "text/event-stream");
    assert_eq!(head.headers.get_all("x-two").iter().count(), 2);
    assert!(!head.headers.contains_key("transfer-encoding"));
}

#[test]
fn an_incomplete_head_is_not_an_error() {
    let text = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
    for end in 0..text.len() {
        assert!(read(&text[..end]).unwrap().is_none(), "{end}");
    }
    assert_eq!(head(text).framing, Framing::Length(5));
}

#[test]
fn framing_follows_headers_method_and_status() {
    let length = |more: &str| head(&format!("HTTP/1.1 200 OK\r\n{more}\r\n")).framing;
    assert_eq!(length(""), Framing::UntilClose);
    assert_eq!(length("content-length: 0\r\n"), Framing::Length(0));
    assert_eq!(length("content-length: 7\r\ncontent-length: 7\r\n"), Framing::Length(7));
    assert_eq!(length("content-length: 7\r\ntransfer-encoding: Chunked\r\n"), Framing::Chunked);
    for (method, status) in [(Method::HEAD, 200), (Method::GET, 204), (Method::GET, 304)] {
        let text = format!("HTTP/1.1 {status} X\r\ncontent-length: 7\r\n\r\n");
        let head = read_response(&method, text.as_bytes()).unwrap().unwrap();
        assert_eq!(head.framing, Framing::Length(0), "{method} {status}");
    }
    assert_eq!(head("HTTP/1.1 100 Continue\r\n\r\n").framing, Framing::Length(0));
}

#[test]
fn ambiguous_framing_is_refused() {
    let answer = |more: &str| read(&format!("HTTP/1.1 200 OK\r\n{more}\r\n\r\n")).unwrap_err();
    for more in ["content-length: 1\r\ncontent-length: 2", "content-length: +1", "content-length:"]
    {
        assert_eq!(answer(more), HeadError::Length, "{more}");
    }
    for more in [
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: identity",
    ] {
        assert_eq!(answer(more), HeadError::Coding, "{more}");
    }
    let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(read(old).unwrap_err(), HeadError::Coding);
    let switching = "HTTP/1.1 101 X\r\nupgrade: x\r\n\r\n";
    assert_eq!(read(switching).unwrap_err(), HeadError::Switching);
    assert!(matches!(answer("no header at all"), HeadError::Malformed(_)));
    assert!(matches!(read("SSH-2.0-x\r\n"), Err(HeadError::Malformed(_))));
}

#[test]
fn a_connection_is_reused_unless_either_side_closes_it() {
    let goes_on = |text: &str| head(text).keeps_alive;
    assert!(goes_on("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
    assert!(!goes_on("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: Close\r\n\r\n"));
    assert!(!goes_on("HTTP/1.1 200 OK\r\n\r\n"), "the body ends with the connection");
    assert!(!goes_on("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"));
    assert!(goes_on("HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n"));
    let both = "HTTP/1.1 200 OK\r\ncontent-length: 7\r\ntransfer-encoding: chunked\r\n\r\n";
    assert!(!goes_on(both), "two framings");
}

#[test]
fn headers_listed_by_connection_are_not_forwarded() {
    let head = head(
        "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-hop\r\nX-Hop: 1\r\nkeep-alive: timeout=5\r\n\
         x-stays: 1\r\ncontent-length: 0\r\n\r\n",
    );
    assert_eq!(head.headers.len(), 1);
    assert_eq!(head.headers["x-stays"], "1");
    assert!(head.keeps_alive);
    // Names as long as `close` and `keep-alive`.
    for hop in ["x-hop", "x-internal"] {
        let text = format!("HTTP/1.1 200 OK\r\nconnection: {hop}\r\n{hop}: 1\r\n\r\n");
        assert!(
            super::read_response(&Method::GET, text.as_bytes())
                .unwrap()
                .unwrap()
                .headers
                .is_empty()
        );
    }
}

#[test]
fn an_oversized_head_is_refused() {
    let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_MAX));
    assert_eq!(read(&long).unwrap_err(), HeadError::TooLarge);
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(HEADERS_MAX + 1));
    assert!(matches!(read(&many), Err(HeadError::Malformed(_))));
}

proptest! {
    /// Arbitrary bytes are parsed or refused; a parsed head lies within them.
    #[test]
    fn arbitrary_bytes_are_parsed_or_refused(
        begin in prop_oneof![Just(""), Just("HTTP/1.1 200 OK\r\n")],
        rest in proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b'a'), any::<u8>()], 0..80
        ),
    ) {
        let bytes = [begin.as_bytes(), &rest].concat();
        if let Ok(Some(head)) = read_response(&Method::GET, &bytes) {
            prop_assert!(head.length <= bytes.len());
        }
    }
}
