//! A client's request with its body read: what the legs are made from. Plain data.

use bytes::Bytes;
use http::header::HeaderMap;
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Uri};
use http_body_util::Full;

use crate::headers::{Identity, for_leg};

/// The client's request.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub target: PathAndQuery,
    /// All of its headers.
    pub headers: HeaderMap,
    /// All of its body.
    pub body: Bytes,
}

impl Inbound {
    /// The request of one leg: the client's, with `body` in place of its own.
    pub fn leg(
        &self,
        authority: &Authority,
        identity: Identity<'_>,
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from(self.target.clone());
        *request.headers_mut() = for_leg(&self.headers, authority, identity);
        request
    }
}
