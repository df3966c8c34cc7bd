//! Which headers travel: every one of the client's reaches both legs but those that belong to one
//! connection, and every one of the engine's reaches the client likewise.

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::Authority;

/// The request id that both legs and the client see.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Headers of one connection (RFC 9110 §7.6.1), and those that hyper sets itself.
const HOP_BY_HOP: [HeaderName; 11] = [
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// What identifies one attempt of a request to the engines.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Its x-request-id; a retry has a fresh one.
    pub request_id: &'a str,
    /// Its traceparent at this hop.
    pub traceparent: &'a str,
}

/// The headers of a leg, from the client's.
pub fn for_leg(client: &HeaderMap, authority: &Authority, identity: Identity<'_>) -> HeaderMap {
    let mut headers = end_to_end(client);
    // Both are checked to be visible ASCII when they are taken or made.
    if let Ok(id) = HeaderValue::from_str(identity.request_id) {
        headers.insert(X_REQUEST_ID, id);
    }
    if let Ok(parent) = HeaderValue::from_str(identity.traceparent) {
        headers.insert(TRACEPARENT, parent);
    }
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        headers.insert(HOST, host);
    }
    headers
}

/// The headers of the client's answer, from the engine's.
pub fn for_client(engine: &HeaderMap, request_id: &str) -> HeaderMap {
    let mut headers = end_to_end(engine);
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(X_REQUEST_ID, id);
    }
    headers
}

/// All but those of one connection, and those that `connection` names.
fn end_to_end(from: &HeaderMap) -> HeaderMap {
    let named: Vec<&str> = from
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(',').map(str::trim))
        .collect();
    let mut to = HeaderMap::with_capacity(from.len() + 3);
    for (name, value) in from {
        let hop = HOP_BY_HOP.contains(name)
            || named.iter().any(|n| n.eq_ignore_ascii_case(name.as_str()));
        if !hop {
            to.append(name.clone(), value.clone());
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_headers_travel_and_those_of_the_connection_do_not() {
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
        ] {
            client.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let identity = Identity { request_id: "r-1", traceparent: "00-a-b-01" };
        let leg = for_leg(&client, &Authority::from_static("engine:1"), identity);
        assert_eq!(leg["authorization"], "Bearer k");
        assert_eq!(leg.get_all("x-custom").iter().count(), 2);
        assert_eq!(leg["host"], "engine:1");
        assert_eq!(leg["x-request-id"], "r-1");
        for gone in ["connection", "x-hop", "content-length"] {
            assert!(!leg.contains_key(gone), "{gone}");
        }
    }
}
