//! From a connection's request to one that the filters have let in: read the body within its
//! limit, answer what needs no engine, run the filter chain, off the reactor if the body is large.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use std::sync::Arc;
use tidegate_engine::{ApiError, Endpoint};
use tidegate_filters::{Accepted, Arrival, FreshIds, Head};

use crate::inbound::Inbound;
use crate::service::Proxy;

/// Tokenizing takes about 5 µs a KB: above this a body would hold up the reactor's other streams
/// for more than a third of a millisecond.
const INLINE_MAX: usize = 64 << 10;

/// What came in.
pub enum Taken {
    /// `GET /v1/models`: no engine is asked.
    Models,
    /// A request for the engines.
    Request(Box<(Inbound, Accepted)>),
}

/// A request that went no further.
pub struct Refused {
    /// What it asked for.
    pub path: PathAndQuery,
    /// What it is told.
    pub error: ApiError,
}

/// Read a request and run the filters over it. Returns its id, and what it is.
pub async fn take(
    proxy: &Arc<Proxy>,
    request: Request<Incoming>,
) -> (String, Result<Taken, Refused>) {
    let (parts, body) = request.into_parts();
    let wall = proxy.clock.wall(proxy.clock.now()) as u64;
    let fresh = FreshIds::from_random(fastrand::u128(..), fastrand::u128(..), fastrand::u64(..));
    let fresh = fresh.at(wall);
    let target = parts.uri.path_and_query().cloned();
    let path = target.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let request_id = tidegate_filters::request_id(&parts.headers, &fresh);
    let taken = match read(proxy, &parts, body).await {
        Ok(body) => admit(proxy, parts, path.clone(), body, fresh).await,
        Err(error) => Err(error),
    };
    (request_id, taken.map_err(|error| Refused { path, error }))
}

async fn read(proxy: &Proxy, parts: &Parts, body: Incoming) -> Result<Bytes, ApiError> {
    // A stranger, or a body that is announced too large, is refused before it is read.
    let path = parts.uri.path();
    proxy.chain.admit_head(&Head { method: &parts.method, path, headers: &parts.headers })?;
    match Limited::new(body, proxy.body_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(proxy.body_max)),
        Err(_) => Err(ApiError::bad_request("The request body could not be read.", None)),
    }
}

async fn admit(
    proxy: &Arc<Proxy>,
    parts: Parts,
    target: PathAndQuery,
    body: Bytes,
    fresh: FreshIds,
) -> Result<Taken, ApiError> {
    let inbound = Inbound { method: parts.method, target, headers: parts.headers, body };
    let accepted = if inbound.body.len() <= INLINE_MAX {
        filter(proxy, &inbound, &fresh)?
    } else {
        let (proxy, held) = (Arc::clone(proxy), inbound.clone());
        let filtering = tokio::task::spawn_blocking(move || filter(&proxy, &held, &fresh));
        filtering.await.map_err(|_| ApiError::internal())??
    };
    if accepted.endpoint == Endpoint::Models {
        return Ok(Taken::Models);
    }
    Ok(Taken::Request(Box::new((inbound, accepted))))
}

fn filter(proxy: &Proxy, inbound: &Inbound, fresh: &FreshIds) -> Result<Accepted, ApiError> {
    let arrival = Arrival {
        method: &inbound.method,
        path: inbound.target.path(),
        headers: &inbound.headers,
        body: &inbound.body,
    };
    let estimates = proxy.fleet.estimates();
    proxy.chain.admit(&proxy.directory(), &estimates.bytes, &arrival, fresh)
}
