//! Requests that only some backends of a pool can serve: those about an object stored by one
//! engine, and paths that some engine kinds lack. Candidates are tried in order, the holder of the
//! object first. These requests bypass the EDF queue; generating ones wait for capacity on the
//! backend being tried.

use http::StatusCode;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;
use tidegate_engine::ids::{self, id_in_path, id_in_request};
use tidegate_engine::{ApiError, Endpoint, Kinds};
use tidegate_scheduler::inflight::BacklogBound;
use tidegate_types::{BackendId, Role, Seconds};
use tokio::time::sleep_until;

use crate::backends::fleet::{Backend, KnownPrefixes, RoutingTable};
use crate::dispatch::answer::{OpenedAnswer, OpenedBody};
use crate::dispatch::attempts::{self, FailedAttempts};
use crate::dispatch::colocated;
use crate::dispatch::inbound::Inbound;
use crate::dispatch::reservation::{Predicted, Reservation};
use crate::dispatch::serving::{AttemptError, Serving};
use crate::dispatch::settle::RequestRecord;
use crate::upstream::failure::Failure;

/// Interval between two attempts to reserve capacity: about an engine step.
const RETRY_INTERVAL: Seconds = Seconds(0.01);
/// Most backends tried for an object or path.
const BACKENDS_TRIED_MAX: usize = 64;

/// How a request reaches a backend.
pub enum Routing {
    /// These backends are tried in this order.
    Direct(Vec<Arc<Backend>>),
    /// Placement chooses any backend of the pool.
    Placed,
}

/// Chooses the route of a request.
pub fn route(serving: &Serving<'_>) -> Routing {
    let Serving { proxy, accepted, inbound, job, .. } = serving;
    let id = stored_id(serving);
    let is_other = matches!(
        accepted.endpoint,
        Endpoint::StoredObject | Endpoint::Page | Endpoint::Upload | Endpoint::Realtime
    );
    let is_placed = id.is_none() && !is_other;
    if is_placed && accepted.kinds == Kinds::ALL {
        return Routing::Placed;
    }
    let table = proxy.fleet.table();
    let pool = table.backends(job.pool);
    let path = inbound.target.path();
    let has = |id: &BackendId| proxy.fleet.backend(*id).has_path(accepted.kinds, path);
    if is_placed && pool.iter().all(has) {
        return Routing::Placed;
    }
    let holder = id.as_deref().and_then(|id| proxy.fleet.stored.find(id));
    let backends = proxy.fleet.backends();
    let mut open: Vec<&Arc<Backend>> =
        pool.iter().filter(|id| has(id)).map(|id| &backends[id.index()]).collect();
    let spread = job.seed as usize % open.len().max(1);
    open.rotate_left(spread);
    open.sort_by_cached_key(|backend| order(backend, &table, holder));
    open.truncate(BACKENDS_TRIED_MAX);
    Routing::Direct(open.into_iter().cloned().collect())
}

/// Sort key: the holder first, then backends that take new work, then colocated before disaggregated
/// engines, then the least loaded.
fn order(
    backend: &Backend,
    table: &RoutingTable,
    holder: Option<BackendId>,
) -> (bool, bool, Reverse<bool>, u64) {
    let balance = backend.account.total();
    let draining = table.entry(backend.id).role == Role::Draining;
    let busy = (balance.prefill.get() * 1e6) as u64 + u64::from(balance.streams);
    (holder != Some(backend.id), draining, Reverse(backend.family.serves_colocated()), busy)
}

/// Returns the id of the stored object that the request refers to.
fn stored_id<'a>(serving: &Serving<'a>) -> Option<Cow<'a, str>> {
    let path = serving.inbound.target.path();
    if serving.accepted.endpoint == Endpoint::StoredObject {
        return id_in_path(path).map(Cow::Borrowed);
    }
    id_in_request(serving.accepted.scan.as_ref()?, &serving.inbound.body)
}

/// Tries `backends` in order. A "not found" answer reaches the client only if no backend has the object.
///
/// # Errors
/// [`Failure`] if there is no candidate, or after the last failed attempt.
pub async fn serve(
    mut serving: Serving<'_>,
    backends: Vec<Arc<Backend>>,
    record: &mut RequestRecord,
) -> Result<OpenedAnswer, Failure> {
    let proxy = serving.proxy;
    if backends.is_empty() {
        let (method, path) = (serving.inbound.method.as_str(), serving.inbound.target.path());
        return Err(ApiError::unknown_path(method, path).into());
    }
    let (mut missing, mut failed, mut failed_attempts) = (None, false, FailedAttempts::default());
    for backend in backends {
        if !backend.health.is_usable() {
            continue;
        }
        let (reservation, predicted) = match reservation(&serving, &backend).await {
            Ok(Some(reserved)) => reserved,
            Ok(None) => continue,
            Err(failure) => {
                failed_attempts.attribute(proxy, false);
                return Err(failed_attempts.final_failure(proxy, failure));
            }
        };
        record.placed(proxy.clock.now(), None);
        let mut progress = record.progress();
        match colocated::send(&serving, reservation, predicted, &mut progress).await {
            Ok(mut opened) if is_not_found(&opened) => {
                opened.reservation.prefilled();
                missing = Some(opened);
            }
            Ok(opened) => {
                failed_attempts.attribute(proxy, is_served(opened.head.status));
                return Ok(opened);
            }
            Err(AttemptError::Final(failure)) => {
                failed_attempts.attribute(proxy, false);
                return Err(failed_attempts.final_failure(proxy, failure));
            }
            Err(AttemptError::Retryable(missed)) => {
                attempts::log(record, proxy, &missed);
                failed = true;
                if let Some(failure) =
                    failed_attempts.take(&mut serving, missed, None, record.attempts())
                {
                    failed_attempts.attribute(proxy, false);
                    return Err(failure);
                }
            }
        }
    }
    failed_attempts.attribute(proxy, false);
    // If a backend failed, it may be the holder: its failure has precedence over "not found".
    let failure = failed_attempts.exhausted(proxy, record.attempts()).filter(|_| failed);
    match (failure, missing) {
        (Some(failure), _) => Err(failure),
        (None, Some(opened)) => Ok(opened),
        (None, None) => Err(Failure::NoBackend),
    }
}

/// Returns whether the object or path is missing on this backend; another one may have it.
fn is_not_found(opened: &OpenedAnswer) -> bool {
    let missing = matches!(
        opened.head.status,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
    );
    missing && matches!(opened.body, OpenedBody::Complete(_))
}

fn is_served(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// Reserves capacity on `backend`. A generating request waits for prefill capacity until its TTFT
/// deadline, and for a stream until its queue deadline. `None`: the backend is no longer usable.
async fn reservation(
    serving: &Serving<'_>,
    backend: &Arc<Backend>,
) -> Result<Option<(Reservation, Predicted)>, Failure> {
    let Serving { proxy, accepted, job, .. } = serving;
    let generates = accepted.endpoint.generates();
    loop {
        let now = proxy.clock.now();
        if let Some(reserved) = try_reserve(serving, backend, generates && now < job.ttft_deadline)
        {
            return Ok(Some(reserved));
        }
        if !backend.health.is_usable() {
            return Ok(None);
        }
        if now >= job.queue_deadline {
            return Err(Failure::QueueDeadline { waited: now - job.arrived });
        }
        proxy.timer_coalescing.keep();
        sleep_until(proxy.clock.coarse_instant(now + RETRY_INTERVAL)).await;
    }
}

/// Reserves capacity if it is free. `waits`: the prefill backlog bound applies.
fn try_reserve(
    serving: &Serving<'_>,
    backend: &Arc<Backend>,
    waits: bool,
) -> Option<(Reservation, Predicted)> {
    let Serving { proxy, accepted, job, matches, .. } = serving;
    let table = proxy.fleet.table();
    let view = proxy.view(&table, KnownPrefixes::One(matches));
    let predicted = serving.predict(&view, backend);
    let (new, work) = (job.prompt - predicted.cached, predicted.prefill);
    let account = &backend.account;
    let generates = accepted.endpoint.generates();
    let placement = &serving.settings().placement;
    let bound = BacklogBound {
        work: placement.prefill_backlog_max,
        tokens: placement.step_tokens_max(new),
    };
    let prefill = match (generates, waits) {
        (true, true) => Some(account.try_charge_prefill(work, new, bound)?),
        (true, false) => Some(account.charge_prefill(work, new)),
        (false, _) => None,
    };
    // A websocket is charged as one stream; its tokens are unknown.
    let stream = match generates || accepted.endpoint == Endpoint::Realtime {
        true => {
            Some(account.try_open_stream(job.prompt, &job.targets, view.streams_max(backend.id))?)
        }
        false => None,
    };
    let signal = Arc::clone(proxy.queue.signal());
    let reservation = Reservation::new(Arc::clone(backend), prefill, stream, signal);
    Some((reservation, predicted))
}

/// Remembers which backend stores the object in its answer.
pub fn remember_holder(inbound: &Inbound, opened: &OpenedAnswer, record: &RequestRecord) {
    let (proxy, accepted) = (&record.proxy, &record.accepted);
    let path = inbound.target.path();
    let keeps = || ids::is_stored(accepted.endpoint, accepted.scan.as_ref(), path, &inbound.body);
    if !opened.head.status.is_success() || !keeps() {
        return;
    }
    let id = match &opened.body {
        OpenedBody::Complete(answer) => ids::id_in_answer(answer),
        OpenedBody::Events(begun) => ids::id_in_events(&begun.first),
        OpenedBody::Forwarded(_) | OpenedBody::Websocket(_) => None,
    };
    if let Some(id) = id {
        proxy.fleet.stored.note(&id, opened.reservation.backend.id);
    }
}
