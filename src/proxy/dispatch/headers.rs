//! Header forwarding: both legs receive the client's headers, except hop-by-hop headers and those that
//! tidegate sets.

use http::header::{ACCEPT_ENCODING, CONNECTION, HeaderMap, HeaderName, HeaderValue};
use tidegate_engine::pd_role::{EPOCH_HEADER, ROLE_HEADER};
use tidegate_filters::CREDENTIALS;
use tidegate_http1::{RequestHeadWriter, is_hop_by_hop, is_listed};
use tidegate_types::Role;

use crate::upstream::Address;

/// The request id that both legs and the client see.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Ids of one attempt of a request.
#[derive(Clone, Copy, Debug)]
pub struct AttemptIds<'a> {
    /// `x-request-id`; a retry has a fresh one.
    pub request_id: &'a str,
    /// `traceparent` of this hop.
    pub traceparent: &'a str,
    /// Role and epoch that an engine with enforced roles requires.
    pub admission: Option<(Role, u64)>,
}

/// Writes the headers of a leg: the client's end-to-end headers, those that tidegate sets, and the leg's
/// `own`.
pub fn for_leg(
    head: &mut RequestHeadWriter,
    client: &HeaderMap,
    address: &Address,
    identity: AttemptIds<'_>,
    own: Option<(&'static str, &str)>,
) {
    head.header("host", address.authority.as_str().as_bytes());
    if let Some(key) = &address.key {
        head.header("authorization", key.as_bytes());
    }
    let named: Vec<&[u8]> = client.get_all(CONNECTION).iter().map(HeaderValue::as_bytes).collect();
    for (name, value) in client {
        let text = name.as_str();
        let replaced = *name == X_REQUEST_ID
            || *name == ACCEPT_ENCODING
            || *name == TRACEPARENT
            // An engine with its own key gets no client's.
            || address.key.is_some() && CREDENTIALS.contains(&text)
            || identity.admission.is_some() && [ROLE_HEADER, EPOCH_HEADER].contains(&text)
            || own.is_some_and(|(own, _)| own == text);
        let is_hop = is_hop_by_hop(text.as_bytes())
            || named.iter().any(|list| is_listed(list, text.as_bytes()));
        if !replaced && !is_hop {
            head.header(text, value.as_bytes());
        }
    }
    // Tokens are counted and hand-offs removed in plain text.
    head.header(ACCEPT_ENCODING.as_str(), b"identity");
    // Both ids were checked to be visible ASCII when accepted or generated.
    head.header(X_REQUEST_ID.as_str(), identity.request_id.as_bytes());
    head.header(TRACEPARENT.as_str(), identity.traceparent.as_bytes());
    if let Some((role, epoch)) = identity.admission {
        head.header(ROLE_HEADER, role.as_str().as_bytes());
        head.header(EPOCH_HEADER, epoch.to_string().as_bytes());
    }
    if let Some((name, value)) = own {
        head.header(name, value.as_bytes());
    }
}

/// Sets the request id on an answer.
pub fn name(answer: &mut HeaderMap, request_id: &str) {
    if let Ok(id) = HeaderValue::from_str(request_id) {
        answer.insert(X_REQUEST_ID, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use http::uri::PathAndQuery;

    #[test]
    fn end_to_end_headers_are_forwarded_and_hop_by_hop_headers_removed() {
        let mut client = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer k"),
            ("x-custom", "1"),
            ("x-custom", "2"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "gone"),
            ("content-length", "5"),
            ("host", "proxy"),
            ("x-request-id", "theirs"),
            ("x-own", "theirs"),
            ("x-vllm-pd-epoch", "9"),
            ("accept-encoding", "gzip, br"),
        ] {
            client.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let identity = AttemptIds {
            request_id: "r-1",
            traceparent: "00-a-b-01",
            admission: Some((Role::Decode, 3)),
        };
        let mut head = RequestHeadWriter::new(&Method::GET, &PathAndQuery::from_static("/"));
        let address = Address::parse("http://engine:1").unwrap();
        for_leg(&mut head, &client, &address, identity, Some(("x-own", "ours")));
        let text = String::from_utf8(head.end(0).1).unwrap();
        let mut lines: Vec<&str> = text.split("\r\n").filter(|line| !line.is_empty()).collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "GET / HTTP/1.1",
                "accept-encoding: identity",
                "authorization: Bearer k",
                "host: engine:1",
                "traceparent: 00-a-b-01",
                "x-custom: 1",
                "x-custom: 2",
                "x-own: ours",
                "x-request-id: r-1",
                "x-vllm-pd-epoch: 3",
                "x-vllm-pd-role: decode",
            ]
        );
    }

    #[test]
    fn client_keys_are_removed_for_an_engine_with_its_own_key() {
        let mut client = HeaderMap::new();
        for name in ["authorization", "x-api-key", "api-key"] {
            client.append(HeaderName::from_static(name), HeaderValue::from_static("theirs"));
        }
        let identity = AttemptIds { request_id: "r-1", traceparent: "00-a-b-01", admission: None };
        let mut head = RequestHeadWriter::new(&Method::GET, &PathAndQuery::from_static("/"));
        let address = Address::parse("http://engine:1").unwrap().with_key("ours").unwrap();
        for_leg(&mut head, &client, &address, identity, None);
        let text = String::from_utf8(head.end(0).1).unwrap();
        assert!(
            text.contains("authorization: Bearer ours\r\n") && !text.contains("theirs"),
            "{text}"
        );
        assert!(!format!("{address:?}").contains("ours"), "keys stay out of logs");
    }
}
