//! A request to an engine, serialised.

use bytes::Bytes;
use http::Method;
use http::uri::PathAndQuery;
use std::io::IoSlice;
use tidegate_engine::LegBody;
use tidegate_engine::pd_role::{EPOCH_HEADER, ROLE_HEADER};
use tidegate_http1::RequestHeadWriter;
use tidegate_types::Role;

use super::Address;

/// Serialised head and body of a request.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub(super) method: Method,
    head: Vec<u8>,
    body: Bytes,
    /// A websocket handshake: its answer may be a 101.
    pub(super) upgrades: bool,
}

impl Outgoing {
    /// A request with this head and body; the body's length is added.
    pub fn new(head: RequestHeadWriter, body: Bytes) -> Outgoing {
        let (method, head) = head.end(body.len());
        Outgoing { method, head, body, upgrades: false }
    }

    /// A websocket handshake with this head.
    pub fn upgrade(mut head: RequestHeadWriter) -> Outgoing {
        head.header("connection", b"Upgrade");
        head.header("upgrade", b"websocket");
        Outgoing { upgrades: true, ..Outgoing::new(head, Bytes::new()) }
    }

    /// Creates one of tidegate's own requests, such as a probe. A body is JSON.
    pub fn own(method: &Method, address: &Address, path: &'static str, body: Bytes) -> Outgoing {
        let target = PathAndQuery::from_static(path);
        let mut head = RequestHeadWriter::new(method, &address.target(&target));
        head.header("host", address.authority.as_str().as_bytes());
        if let Some(key) = &address.key {
            head.header("authorization", key.as_bytes());
        }
        if !body.is_empty() {
            head.header("content-type", b"application/json");
        }
        Outgoing::new(head, body)
    }

    /// Creates a leg of one of tidegate's own requests.
    /// `admission`: role and epoch for an engine with enforced roles.
    pub fn own_leg(
        address: &Address,
        path: &'static str,
        leg: &LegBody,
        admission: Option<(Role, u64)>,
    ) -> Outgoing {
        let target = PathAndQuery::from_static(path);
        let mut head = RequestHeadWriter::new(&Method::POST, &address.target(&target));
        head.header("host", address.authority.as_str().as_bytes());
        if let Some(key) = &address.key {
            head.header("authorization", key.as_bytes());
        }
        if let Some((role, epoch)) = admission {
            head.header(ROLE_HEADER, role.as_str().as_bytes());
            head.header(EPOCH_HEADER, epoch.to_string().as_bytes());
        }
        if let Some((name, value)) = &leg.header {
            head.header(name, value.as_bytes());
        }
        head.header("content-type", b"application/json");
        Outgoing::new(head, leg.body.clone())
    }

    pub(super) fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Returns the parts after the first `sent` bytes, with at most `most` bytes of the body.
    pub(super) fn rest(&self, sent: usize, most: usize) -> [IoSlice<'_>; 2] {
        let head = &self.head[sent.min(self.head.len())..];
        let body = &self.body[sent.saturating_sub(self.head.len())..];
        let body = &body[..body.len().min(most)];
        [IoSlice::new(head), IoSlice::new(body)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_body_share_a_write_and_resume_after_a_partial_one() {
        let address = Address::parse("http://engine:8000").unwrap();
        let body = Bytes::from_static(b"{\"a\":1}");
        let request = Outgoing::own(&Method::POST, &address, "/x", body);
        let all = "POST /x HTTP/1.1\r\nhost: engine:8000\r\ncontent-type: application/json\r\n\
                   content-length: 7\r\n\r\n{\"a\":1}";
        assert_eq!(request.len(), all.len());
        for sent in 0..=all.len() {
            let [head, body] = request.rest(sent, usize::MAX);
            assert_eq!([&*head, &*body].concat(), all.as_bytes()[sent..]);
            let [_, body] = request.rest(sent, 3);
            assert!(body.len() <= 3);
        }
    }
}
