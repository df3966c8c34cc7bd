//! A client's request with its body read: what the legs are made from. Plain data.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Uri};
use http_body_util::Full;
use tidegate_engine::LegBody;

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
    /// The request of one leg: the client's, with the leg's body in place of its own, and its header.
    pub fn leg(
        &self,
        authority: &Authority,
        identity: Identity<'_>,
        leg: &LegBody,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(leg.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from(self.target.clone());
        *request.headers_mut() = for_leg(&self.headers, authority, identity);
        if let Some((name, value)) = &leg.header
            && let Ok(value) = HeaderValue::from_str(value)
        {
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
        request
    }
}
