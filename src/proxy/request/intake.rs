//! Admission: the head is checked before the body is read, then the filter chain runs, off the reactor if
//! the body is large.

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use std::net::IpAddr;
use std::sync::Arc;
use tidegate_engine::openai::MODEL_NOT_FOUND;
use tidegate_engine::{ApiError, Edits, Endpoint, Span, paths, scan};
use tidegate_filters::{
    Accepted, AdmittedHead, FreshIds, HeadParts, PromptEstimator, RequestParts, model_in_query,
    with_model,
};
use tidegate_types::Moment;

use crate::dispatch::context::Proxy;
use crate::dispatch::inbound::Inbound;
use crate::dispatch::settings_in_force::SettingsInForce;
use crate::runtime::budget::BudgetShare;
use crate::runtime::filter_permits::INLINE_MAX;

/// An admitted request.
pub enum Admitted {
    /// `GET /v1/models`, or one model's card: answered without an engine.
    Models {
        request_id: String,
        /// Path: the list or one card.
        path: PathAndQuery,
    },
    /// A request for the engines.
    Request(Inbound, Arc<Accepted>),
}

pub struct RefusedRequest {
    pub request_id: String,
    pub path: PathAndQuery,
    /// The error that the client gets.
    pub error: ApiError,
}

/// A request body that was read.
pub struct ReceivedBody {
    /// The admitted head before it.
    pub head: AdmittedHead,
    /// The complete body.
    pub bytes: Bytes,
    /// Its share of the budget.
    pub held: BudgetShare,
}

/// A request as received, before the filters.
pub struct ReceivedRequest {
    /// The settings in force when its head had arrived.
    pub settings: Arc<SettingsInForce>,
    /// Request line and headers.
    pub head: Parts,
    /// The complete body, or the error with which it is refused.
    pub body: Result<ReceivedBody, ApiError>,
    /// Whether it is a websocket handshake.
    pub upgrades: bool,
    /// Arrival of its head.
    pub arrived: Moment,
    /// The subject of the client's certificate, if it presented one.
    pub subject: Option<Arc<str>>,
    /// Address of the client.
    pub peer: IpAddr,
}

/// Checks the head before the body is read: authentication, limits, announced body size.
///
/// # Errors
/// The error that the client gets.
pub fn admit_head(
    proxy: &Proxy,
    settings: &SettingsInForce,
    head: &Parts,
) -> Result<AdmittedHead, ApiError> {
    let path = head.uri.path();
    settings.chain.admit_head(
        &proxy.directory(),
        &HeadParts { method: &head.method, path, headers: &head.headers },
    )
}

/// Runs the filters over a request.
pub async fn admit_request(
    proxy: &Arc<Proxy>,
    received: ReceivedRequest,
) -> Result<Admitted, RefusedRequest> {
    let ReceivedRequest { settings, head, body, upgrades, arrived, subject, peer } = received;
    let wall = proxy.clock.wall(arrived) as u64;
    let fresh = FreshIds::from_random(fastrand::u128(..), fastrand::u128(..), fastrand::u64(..));
    let fresh = fresh.at(wall).sampled_by(proxy.sampler);
    let Parts { method, uri, headers, .. } = head;
    let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let target = without_slash(target);
    let refused = |inbound: Inbound, error| RefusedRequest {
        request_id: tidegate_filters::request_id(&inbound.headers, &fresh),
        path: inbound.target,
        error,
    };
    let body_none = Bytes::new();
    let mut inbound = Inbound {
        settings,
        method,
        target,
        headers,
        body: body_none,
        upgrades,
        subject,
        prefill_at: None,
        held: None,
    };
    let head = match body {
        Ok(ReceivedBody { head, bytes, mut held }) => {
            held.keep(&bytes);
            (inbound.body, inbound.held) = (bytes, Some(held));
            head
        }
        Err(error) => return Err(refused(inbound, error)),
    };
    match admit(proxy, &mut inbound, &head, peer, fresh).await {
        Ok(accepted) if matches!(accepted.endpoint, Endpoint::Models | Endpoint::Model) => {
            let request_id = accepted.request_id.clone();
            Ok(Admitted::Models { request_id, path: inbound.target })
        }
        Ok(accepted) if accepted.endpoint == Endpoint::Realtime && !upgrades => {
            Err(refused(inbound, ApiError::websocket_only()))
        }
        Ok(accepted) => {
            if let (Endpoint::Realtime, Some(name)) = (accepted.endpoint, &accepted.model) {
                inbound.target = with_own_name(inbound.target, name);
            }
            match &proxy.sidecar {
                Some(sidecar) => match sidecar.take_target(peer, &mut inbound.headers) {
                    Ok(target) => inbound.prefill_at = target,
                    Err(error) => return Err(refused(inbound, error)),
                },
                None => inbound.settings.chain.strip_handoff(&mut inbound.headers),
            }
            if inbound.settings.keeps_authorization {
                // The keys are the gateway's own; an engine with authentication would reject them.
                for name in tidegate_filters::CREDENTIALS {
                    inbound.headers.remove(name);
                }
            }
            Ok(Admitted::Request(inbound, accepted))
        }
        Err(error) => Err(refused(inbound, error)),
    }
}

/// Removes a slash at the end of the path: engines know the paths without it.
fn without_slash(target: PathAndQuery) -> PathAndQuery {
    let short = paths::without_slash(target.path());
    if short.len() == target.path().len() {
        return target;
    }
    let text = match target.query() {
        Some(query) => format!("{short}?{query}"),
        None => short.to_owned(),
    };
    PathAndQuery::try_from(text).unwrap_or(target)
}

/// Replaces an alias in the query by the model's own name, the only one known to the engine.
fn with_own_name(target: PathAndQuery, name: &str) -> PathAndQuery {
    let query = target.query().unwrap_or_default();
    match model_in_query(query) {
        Some(requested) if requested != name => {
            let text = format!("{}?{}", target.path(), with_model(query, name));
            PathAndQuery::try_from(text).unwrap_or(target)
        }
        _ => target,
    }
}

/// Runs the filters; an unknown model triggers model discovery, then they run once more.
async fn admit(
    proxy: &Arc<Proxy>,
    inbound: &mut Inbound,
    head: &AdmittedHead,
    peer: IpAddr,
    fresh: FreshIds,
) -> Result<Arc<Accepted>, ApiError> {
    match filtered(proxy, inbound, head, peer, fresh).await {
        Err(error) if error.code == Some(MODEL_NOT_FOUND) => {
            // Boxed: few requests name an unknown model.
            match Box::pin(proxy.discovery.refresh(proxy.clock, &proxy.fleet, &error.message)).await
            {
                true => filtered(proxy, inbound, head, peer, fresh).await,
                false => Err(error),
            }
        }
        accepted => accepted,
    }
}

/// Runs the filters, on a blocking thread for a large body.
async fn filtered(
    proxy: &Arc<Proxy>,
    inbound: &mut Inbound,
    head: &AdmittedHead,
    peer: IpAddr,
    fresh: FreshIds,
) -> Result<Arc<Accepted>, ApiError> {
    let (accepted, edited) = if inbound.body.len() <= INLINE_MAX {
        filter(proxy, inbound, head, peer, &fresh)?
    } else {
        // In order of arrival. The permit and the budget share are held by the blocking task, which a
        // client's disconnect does not end.
        let permits = Arc::clone(&inbound.settings.filter_permits);
        let permit = permits.acquire(inbound.body.len()).await.ok_or_else(ApiError::internal)?;
        let (proxy, copy, held) = (Arc::clone(proxy), inbound.without_share(), inbound.held.take());
        let head = head.clone();
        let filtering = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            (filter(&proxy, &copy, &head, peer, &fresh), held)
        });
        let (filtered, held) = filtering.await.map_err(|_| ApiError::internal())?;
        inbound.held = held;
        filtered?
    };
    if let Some(body) = edited {
        inbound.body = body;
    }
    Ok(accepted)
}

/// The accepted request, and its edited body if it named an alias.
type Filtered = (Arc<Accepted>, Option<Bytes>);

fn filter(
    proxy: &Proxy,
    inbound: &Inbound,
    head: &AdmittedHead,
    peer: IpAddr,
    fresh: &FreshIds,
) -> Result<Filtered, ApiError> {
    let arrival = RequestParts {
        method: &inbound.method,
        path: inbound.target.path(),
        query: inbound.target.query().unwrap_or_default(),
        headers: &inbound.headers,
        body: &inbound.body,
    };
    let (estimates, calibrations) =
        (proxy.fleet.estimates(), proxy.fleet.sampled_prompts.calibrations());
    let estimator = PromptEstimator { bytes: &estimates.bytes, calibrations: &calibrations };
    let settings = &inbound.settings;
    let mut accepted =
        settings.chain.admit(&proxy.directory(), estimator, head, &arrival, fresh)?;
    // Before the headers are removed.
    accepted.targets = settings.classes.targets(&accepted, &inbound.headers, peer);
    proxy.fleet.sampled_prompts.offer(&accepted, &inbound.body);
    match accepted.alias_at {
        Some(at) => renamed(accepted, &inbound.body, at),
        None => Ok((Arc::new(accepted), None)),
    }
}

/// Replaces an alias in the body by the model's own name.
fn renamed(mut accepted: Accepted, body: &Bytes, at: Span) -> Result<Filtered, ApiError> {
    let name = accepted.model.as_deref().unwrap_or_default();
    let body = match &accepted.scan {
        Some(before) => {
            let quoted = serde_json::to_string(name).map_err(|_| ApiError::internal())?;
            let edited = Edits::new().set("model", quoted.as_bytes()).apply(body, before);
            // The edited body is scanned again: offsets have changed.
            let again = scan(accepted.endpoint, &edited)?;
            accepted.scan = Some(again);
            edited
        }
        None => {
            let (before, after) = (&body[..at.start as usize], &body[at.end as usize..]);
            Bytes::from([before, name.as_bytes(), after].concat())
        }
    };
    Ok((Arc::new(accepted), Some(body)))
}
