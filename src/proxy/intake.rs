//! From a connection's request to one that the filters have let in: the head is looked at before the
//! body is read, then the filter chain runs, off the reactor if the body is large.

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use std::sync::Arc;
use tidegate_engine::{ApiError, Endpoint};
use tidegate_filters::{Accepted, Arrival, FreshIds, Head};
use tidegate_terms::Moment;

use crate::inbound::Inbound;
use crate::service::Proxy;

/// Tokenizing takes about 5 µs a KB: above this a body would hold up the reactor's other streams
/// for more than a third of a millisecond.
const INLINE_MAX: usize = 64 << 10;

/// What came in.
pub enum Taken {
    /// `GET /v1/models`: no engine is asked.
    Models {
        /// The request's id.
        request_id: String,
    },
    /// A request for the engines.
    Request(Inbound, Arc<Accepted>),
}

/// A request that went no further.
pub struct Refused {
    /// Its id.
    pub request_id: String,
    /// What it asked for.
    pub path: PathAndQuery,
    /// What it is told.
    pub error: ApiError,
}

/// A request as it came in, before anything is known of it.
pub struct Asked {
    /// Its head.
    pub head: Parts,
    /// All of its body, or why it is refused.
    pub body: Result<Bytes, ApiError>,
    /// When its head was here.
    pub arrived: Moment,
    /// The subject of the client's certificate, if it presented one.
    pub subject: Option<Arc<str>>,
}

/// A stranger, or a body that is announced too large, is refused before it is read.
///
/// # Errors
/// What the client is told.
pub fn admit_head(proxy: &Proxy, head: &Parts) -> Result<(), ApiError> {
    let path = head.uri.path();
    proxy.chain.admit_head(&Head { method: &head.method, path, headers: &head.headers })
}

/// Run the filters over a request.
pub async fn take(proxy: &Arc<Proxy>, asked: Asked) -> Result<Taken, Refused> {
    let Asked { head, body, arrived, subject } = asked;
    let wall = proxy.clock.wall(arrived) as u64;
    let fresh = FreshIds::from_random(fastrand::u128(..), fastrand::u128(..), fastrand::u64(..));
    let fresh = fresh.at(wall);
    let Parts { method, uri, headers, .. } = head;
    let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let refused = |inbound: Inbound, error| Refused {
        request_id: tidegate_filters::request_id(&inbound.headers, &fresh),
        path: inbound.target,
        error,
    };
    let mut inbound = Inbound { method, target, headers, body: Bytes::new(), subject };
    match body {
        Ok(body) => inbound.body = body,
        Err(error) => return Err(refused(inbound, error)),
    }
    match admit(proxy, &inbound, fresh).await {
        Ok(accepted) if accepted.endpoint == Endpoint::Models => {
            Ok(Taken::Models { request_id: accepted.request_id.clone() })
        }
        Ok(accepted) => {
            proxy.chain.strip_handoff(&mut inbound.headers);
            if proxy.keeps_authorization {
                // The filters have read them; to an engine they would be somebody's key.
                for name in tidegate_filters::CREDENTIALS {
                    inbound.headers.remove(name);
                }
            }
            Ok(Taken::Request(inbound, accepted))
        }
        Err(error) => Err(refused(inbound, error)),
    }
}

async fn admit(
    proxy: &Arc<Proxy>,
    inbound: &Inbound,
    fresh: FreshIds,
) -> Result<Arc<Accepted>, ApiError> {
    if inbound.body.len() <= INLINE_MAX {
        return filter(proxy, inbound, &fresh);
    }
    let (proxy, held) = (Arc::clone(proxy), inbound.clone());
    let filtering = tokio::task::spawn_blocking(move || filter(&proxy, &held, &fresh));
    filtering.await.map_err(|_| ApiError::internal())?
}

fn filter(proxy: &Proxy, inbound: &Inbound, fresh: &FreshIds) -> Result<Arc<Accepted>, ApiError> {
    let arrival = Arrival {
        method: &inbound.method,
        path: inbound.target.path(),
        headers: &inbound.headers,
        body: &inbound.body,
    };
    let estimates = proxy.fleet.estimates();
    proxy.chain.admit(&proxy.directory(), &estimates.bytes, &arrival, fresh).map(Arc::new)
}
