//! Requests that not every backend of their pool can take: what one engine keeps, and paths that some
//! kinds have. The backends that come into question are tried in turn, the one that keeps it first,
//! until one has it. They are not in the EDF queue: a request that generates waits for capacity of the
//! backend that is its turn.

use http::StatusCode;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;
use tidegate_engine::ids::{self, id_in_path, id_in_request};
use tidegate_engine::{ApiError, Endpoint, Kinds};
use tidegate_scheduler::inflight::PrefillRoom;
use tidegate_scheduler::placement::Fleet;
use tidegate_types::{BackendId, Role, Seconds};
use tokio::time::sleep_until;

use crate::backends::fleet::{Backend, Known, RoutingTable};
use crate::dispatch::answer::{Opened, OpenedBody};
use crate::dispatch::attempts::{self, Tries};
use crate::dispatch::colocated;
use crate::dispatch::inbound::Inbound;
use crate::dispatch::place::Predicted;
use crate::dispatch::reservation::Reservation;
use crate::dispatch::serving::{Miss, Serving};
use crate::dispatch::settle::RequestRecord;
use crate::telemetry::control_events::ConcurrentStreams;
use crate::upstream::failure::Failure;

/// Interval between two attempts to reserve capacity: about an engine step.
const LOOK_EVERY: Seconds = Seconds(0.01);
/// Backends that are asked for something that none of the first ones has.
const ASKED_MAX: usize = 64;

/// Where a request may go that is not placed as others are.
pub enum Way {
    /// To these, in this order, until one has it.
    Direct(Vec<Arc<Backend>>),
    /// To any of its pool, when there is room.
    Placed,
}

/// Which way it takes.
pub fn way(serving: &Serving<'_>) -> Way {
    let Serving { proxy, accepted, inbound, job, .. } = serving;
    let table = proxy.fleet.table();
    let pool = table.backends(job.pool);
    let path = inbound.target.path();
    let has = |id: &BackendId| proxy.fleet.backend(*id).has_path(accepted.kinds, path);
    let id = kept_id(serving);
    let is_other = matches!(
        accepted.endpoint,
        Endpoint::Kept | Endpoint::Page | Endpoint::Upload | Endpoint::Realtime
    );
    let all_have = || accepted.kinds == Kinds::ALL || pool.iter().all(has);
    if id.is_none() && !is_other && all_have() {
        return Way::Placed;
    }
    let holder = id.as_deref().and_then(|id| proxy.fleet.kept.find(id));
    let mut open: Vec<&Arc<Backend>> =
        pool.iter().filter(|id| has(id)).map(|id| proxy.fleet.backend(*id)).collect();
    let spread = job.seed as usize % open.len().max(1);
    open.rotate_left(spread);
    open.sort_by_cached_key(|backend| order(backend, &table, holder));
    open.truncate(ASKED_MAX);
    Way::Direct(open.into_iter().cloned().collect())
}

/// The one that keeps it first, then those that take new work, the least busy first.
fn order(
    backend: &Backend,
    table: &RoutingTable,
    holder: Option<BackendId>,
) -> (bool, bool, Reverse<bool>, u64) {
    let balance = backend.account.balance();
    let draining = table.entry(backend.id).role == Role::Draining;
    let busy = (balance.prefill.get() * 1e6) as u64 + u64::from(balance.streams);
    (holder != Some(backend.id), draining, Reverse(backend.family.serves_colocated()), busy)
}

/// The id of something kept that the request is about.
fn kept_id<'a>(serving: &Serving<'a>) -> Option<Cow<'a, str>> {
    let path = serving.inbound.target.path();
    if serving.accepted.endpoint == Endpoint::Kept {
        return id_in_path(path).map(Cow::Borrowed);
    }
    id_in_request(serving.accepted.scan.as_ref()?, &serving.inbound.body)
}

/// Try `backends` in turn. An answer that says "not here" is the client's only if all say so.
///
/// # Errors
/// [`Failure`] if none comes into question, or as many failed as may be tried.
pub async fn serve(
    mut serving: Serving<'_>,
    backends: Vec<Arc<Backend>>,
    record: &mut RequestRecord,
) -> Result<Opened, Failure> {
    let proxy = serving.proxy;
    if backends.is_empty() {
        let (method, path) = (serving.inbound.method.as_str(), serving.inbound.target.path());
        return Err(ApiError::unknown_path(method, path).into());
    }
    let (mut missing, mut failed, mut tries) = (None, false, Tries::default());
    for backend in backends {
        if !backend.health.is_usable() {
            continue;
        }
        let (reservation, predicted) = match reservation(&serving, &backend).await {
            Ok(Some(seated)) => seated,
            Ok(None) => continue,
            Err(failure) => {
                tries.settle(proxy, false);
                return Err(tries.gives_up(proxy, failure));
            }
        };
        record.placed_at.get_or_insert(proxy.clock.now());
        record.notes.attempts += 1;
        let mut course = record.course();
        match colocated::whole(&serving, reservation, predicted, &mut course).await {
            Ok(mut opened) if is_elsewhere(&opened) => {
                opened.reservation.prefilled();
                missing = Some(opened);
            }
            Ok(opened) => {
                tries.settle(proxy, is_served(opened.head.status));
                return Ok(opened);
            }
            Err(Miss::Final(failure)) => {
                tries.settle(proxy, false);
                return Err(tries.gives_up(proxy, failure));
            }
            Err(Miss::Elsewhere(missed)) => {
                attempts::log(record, proxy, &missed);
                failed = true;
                if let Some(failure) = tries.take(&mut serving, missed, None, record.notes.attempts)
                {
                    tries.settle(proxy, false);
                    return Err(failure);
                }
            }
        }
    }
    tries.settle(proxy, false);
    // A backend that failed may be the one that has it.
    let told = tries.exhausted(proxy, record.notes.attempts).filter(|_| failed);
    match (told, missing) {
        (Some(failure), _) => Err(failure),
        (None, Some(opened)) => Ok(opened),
        (None, None) => Err(Failure::NoBackend),
    }
}

/// Not there, or no such path: another backend may have it.
fn is_elsewhere(opened: &Opened) -> bool {
    let says = matches!(
        opened.head.status,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
    );
    says && matches!(opened.body, OpenedBody::Complete(_))
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
        if let Some(seated) = try_seat(serving, backend, generates && now < job.ttft_deadline) {
            return Ok(Some(seated));
        }
        if !backend.health.is_usable() {
            return Ok(None);
        }
        if now >= job.queue_deadline {
            return Err(Failure::QueueDeadline { waited: now - job.arrived });
        }
        proxy.timer_coalescing.keep();
        sleep_until(proxy.clock.coarse_instant(now + LOOK_EVERY)).await;
    }
}

/// Reserves capacity if there is any. `waits`: the prefill backlog bound applies.
fn try_seat(
    serving: &Serving<'_>,
    backend: &Arc<Backend>,
    waits: bool,
) -> Option<(Reservation, Predicted)> {
    let Serving { proxy, accepted, job, matches, .. } = serving;
    let table = proxy.fleet.table();
    let view = proxy.view(&table, Known::One(matches));
    let (predicted_hit, cached) = (view.held(job, backend.id), view.cached(job, backend.id));
    let new = job.prompt - cached;
    let work = table.entry(backend.id).prefill.predict(new, cached);
    let account = &backend.account;
    let before = account.balance();
    let beside = ConcurrentStreams {
        streams: before.streams,
        kv: before.kv,
        mid_step: before.prefill_legs == 0,
    };
    let generates = accepted.endpoint.generates();
    let room =
        PrefillRoom { work: proxy.placement.room, tokens: proxy.placement.joins_step_of(new) };
    let prefill = match (generates, waits) {
        (true, true) => Some(account.try_charge_prefill(work, new, room)?),
        (true, false) => Some(account.charge_prefill(work, new)),
        (false, _) => None,
    };
    // A websocket is charged as one stream; its tokens are unknown.
    let stream = match generates || accepted.endpoint == Endpoint::Realtime {
        true => Some(account.try_open_stream(job.prompt, view.streams_max(backend.id))?),
        false => None,
    };
    let signal = Arc::clone(proxy.queue.signal());
    let reservation = Reservation::new(Arc::clone(backend), prefill, stream, signal);
    Some((
        reservation,
        Predicted { prefill: work, ahead: before.prefill, cached, predicted_hit, beside },
    ))
}

/// Remember which backend keeps what it has answered.
pub fn note(inbound: &Inbound, opened: &Opened, record: &RequestRecord) {
    let (proxy, accepted) = (&record.proxy, &record.accepted);
    let path = inbound.target.path();
    let keeps = || ids::is_kept(accepted.endpoint, accepted.scan.as_ref(), path, &inbound.body);
    if !opened.head.status.is_success() || !keeps() {
        return;
    }
    let id = match &opened.body {
        OpenedBody::Complete(answer) => ids::id_in_answer(answer),
        OpenedBody::Events(begun) => ids::id_in_events(&begun.first),
        OpenedBody::Passing(_) | OpenedBody::Websocket(_) => None,
    };
    if let Some(id) = id {
        proxy.fleet.kept.note(&id, opened.reservation.backend.id);
    }
}
