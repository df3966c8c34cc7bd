//! Reserves a backend for a request: at once if one has capacity, otherwise through the EDF queue.
//!
//! The fast path reads one snapshot and reserves by compare-and-swap, without waiting or locks.

use std::sync::Arc;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::inflight::PrefillRoom;
use tidegate_scheduler::placement::{
    Choice, DecodeRequest, PrefillRequest, considered, place, place_decode,
};
use tidegate_types::{BackendId, Moment};

use crate::backends::fleet::{Known, View};
use crate::dispatch::context::Proxy;
use crate::dispatch::reservation::{Placed, Predicted, Reservation};
use crate::upstream::failure::Failure;

/// Retries of the fast path after another request reserved the same capacity.
const RACES_MAX: u32 = 4;

/// Outcome of the fast path.
pub enum Try {
    /// A reservation.
    Placed(Placed),
    /// No backend has capacity now.
    Wait,
    /// No backend is usable.
    Nowhere,
}

/// Reserves a backend for a request's first leg; queues the request if none has capacity.
///
/// Dropping the future removes the request from the queue.
///
/// # Errors
/// [`Failure::NoBackend`], [`Failure::Saturated`], [`Failure::QueueDeadline`].
pub async fn find(
    proxy: &Arc<Proxy>,
    job: &PrefillRequest,
    matches: &Matches,
) -> Result<Placed, Failure> {
    // Waiting requests have precedence.
    let waiting = proxy.fleet.table().pool(job.pool).map_or(0, |pool| pool.demand.waiting());
    if waiting == 0 {
        match try_place(proxy, job, Known::One(matches)) {
            Try::Placed(placed) => return Ok(placed),
            Try::Nowhere => return Err(Failure::NoBackend),
            Try::Wait => {}
        }
    }
    proxy.queue.wait_for_place(job, matches).await
}

/// Reserves a backend for `job` now, or returns why that is impossible.
pub fn try_place(proxy: &Proxy, job: &PrefillRequest, known: Known<'_>) -> Try {
    let table = proxy.fleet.table();
    let view = proxy.view(&table, known);
    for _ in 0..RACES_MAX {
        let choice = place(&proxy.placement, view.now, job, &view);
        match choice {
            Choice::Wait(_) => return Try::Wait,
            Choice::Nowhere(_) => return Try::Nowhere,
            Choice::Prefill { .. } | Choice::Whole { .. } => {
                if let Some(placed) = reserve(proxy, &view, job, choice) {
                    return Try::Placed(placed);
                }
            }
        }
    }
    Try::Wait
}

/// Charges the choice to its backend. `None` if another request has reserved the capacity meanwhile,
/// or if the choice names no backend.
pub fn reserve(
    proxy: &Proxy,
    view: &View<'_>,
    job: &PrefillRequest,
    choice: Choice,
) -> Option<Placed> {
    let (on, work, cached, whole) = match choice {
        Choice::Prefill { on, predicted, cached } => (on, predicted, cached, false),
        Choice::Whole { on, predicted, cached } => (on, predicted, cached, true),
        Choice::Wait(_) | Choice::Nowhere(_) => return None,
    };
    let backend = Arc::clone(&proxy.fleet.backend(on));
    let before = backend.account.balance();
    let uncached = job.prompt - cached;
    let room =
        PrefillRoom { work: proxy.placement.room, tokens: proxy.placement.joins_step_of(uncached) };
    // Before the charge, which is part of the load afterwards.
    let candidates = proxy.recent.is_on().then(|| considered(&proxy.placement, job, view, on));
    let prefill = backend.account.try_charge_prefill(work, uncached, room)?;
    let stream = match whole {
        true => Some(backend.account.try_open_stream(job.prompt, view.streams_max(on))?),
        false => None,
    };
    record_reaction(proxy, job.arrived, view.now);
    let mut reservation =
        Reservation::new(backend, Some(prefill), stream, Arc::clone(proxy.queue.signal()));
    reservation.considered = candidates;
    let predicted = Predicted {
        prefill: view.table.entry(on).prefill.batch(work),
        ahead: before.prefill,
        predicted_hit: view.held(job, on),
        cached,
        beside: before.concurrent_streams(),
    };
    Some(if whole {
        Placed::Whole(reservation, predicted)
    } else {
        Placed::Prefill(reservation, predicted)
    })
}

/// Reserves a decode backend for a prefilled request. Waits for capacity until the hand-off deadline,
/// then takes the best backend even if it is full, because the prefill is already done.
///
/// # Errors
/// [`Failure::NoBackend`] if no backend of the group can be used.
pub async fn find_decode(
    proxy: &Arc<Proxy>,
    handover: &DecodeRequest,
    deadline: Moment,
) -> Result<Reservation, Failure> {
    let now = proxy.clock.now();
    if let Some(reservation) = try_place_decode(proxy, handover, now) {
        return Ok(reservation);
    }
    proxy.queue.wait_for_decode(handover, now, deadline).await
}

/// Places a decode leg that arrived at `arrived`, if a backend has capacity now.
pub fn try_place_decode(
    proxy: &Proxy,
    handover: &DecodeRequest,
    arrived: Moment,
) -> Option<Reservation> {
    let table = proxy.fleet.table();
    let view = proxy.view(&table, Known::One(Matches::NONE));
    for _ in 0..RACES_MAX {
        let on = place_decode(&proxy.placement, view.now, handover, &view)?;
        let backend = proxy.fleet.backend(on);
        if let Some(stream) = backend.account.try_open_stream(handover.kv, view.streams_max(on)) {
            record_reaction(proxy, arrived, view.now);
            let signal = Arc::clone(proxy.queue.signal());
            return Some(Reservation::new(Arc::clone(&backend), None, Some(stream), signal));
        }
    }
    None
}

/// Returns the decode backend with the fewest streams, even if full. `None` if none is usable.
pub fn force_decode(proxy: &Proxy, handover: &DecodeRequest) -> Option<Reservation> {
    let table = proxy.fleet.table();
    let group = table.entry(handover.from).group;
    let now = proxy.clock.now();
    let usable = |id: &&BackendId| {
        table.entry(**id).group == group && proxy.fleet.backend(**id).health.is_usable()
    };
    let key = |id: &&BackendId| {
        let backend = proxy.fleet.backend(**id);
        let failed = handover.excluded.contains(**id);
        let stranger = !table.entry(**id).role.takes_decode();
        let last = backend.health.is_last(now);
        (!backend.may_decode(), failed, last, stranger, backend.account.balance().streams)
    };
    let on = table.backends(handover.pool).iter().filter(usable).min_by_key(key)?;
    let backend = Arc::clone(&proxy.fleet.backend(*on));
    let stream = backend.account.open_stream(handover.kv);
    Some(Reservation::new(backend, None, Some(stream), Arc::clone(proxy.queue.signal())))
}

/// Measures the reaction time: a leg that arrived at `arrived` was placed by a scan that began at `began`.
fn record_reaction(proxy: &Proxy, arrived: Moment, began: Moment) {
    if let Some(elapsed) = proxy.reaction.placed(arrived, began, || proxy.clock.now()) {
        proxy.metrics.surge_placed(elapsed);
    }
}
