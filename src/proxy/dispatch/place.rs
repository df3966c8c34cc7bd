//! Reserves a backend for a request: at once if one has capacity, otherwise through the EDF queue.
//!
//! The fast path reads one snapshot and reserves by compare-and-swap, without waiting or locks.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::dispatch;
use tidegate_scheduler::inflight::StreamCharge;
use tidegate_scheduler::placement::{DecodeRequest, Params, PrefillRequest, queue_limit};
use tidegate_types::{BackendId, Moment};

use crate::backends::fleet::{KnownPrefixes, PlacementView, RoutingTable};
use crate::dispatch::context::Proxy;
use crate::dispatch::reservation::{Reservation, ReservedLeg};
use crate::dispatch::settings_in_force::SettingsInForce;
use crate::upstream::failure::Failure;

/// The charges of a first leg, before they are bound to its backend.
type LegReservation = dispatch::LegReservation<AtomicU64>;

/// Outcome of a placement without waiting.
pub enum PlaceOutcome {
    /// A reservation.
    Placed(ReservedLeg),
    /// No backend has capacity now.
    Wait,
    /// No backend can take the request: none is usable, all are draining, or no group serves both legs.
    Unroutable,
}

/// Reserves a backend for a request's first leg; queues the request if none has capacity.
///
/// Dropping the future removes the request from the queue.
///
/// # Errors
/// [`Failure::NoBackend`], [`Failure::Saturated`], [`Failure::QueueDeadline`].
pub async fn find(
    proxy: &Arc<Proxy>,
    settings: &SettingsInForce,
    job: &PrefillRequest,
    matches: &Matches,
) -> Result<ReservedLeg, Failure> {
    match place_unless_queued(proxy, &settings.placement, job, matches) {
        PlaceOutcome::Placed(placed) => return Ok(placed),
        PlaceOutcome::Unroutable => return Err(Failure::NoBackend),
        PlaceOutcome::Wait => {}
    }
    let limit = queue_limit(settings.placement.queue_max, &job.targets);
    proxy.queue.wait_for_place(job, matches, limit).await
}

/// Reserves a backend for `job` now if no request that precedes it is queued.
fn place_unless_queued(
    proxy: &Proxy,
    params: &Params,
    job: &PrefillRequest,
    matches: &Matches,
) -> PlaceOutcome {
    let table = proxy.fleet.table();
    let waiting = table.pool(job.pool).map_or(0, |pool| pool.demand.waiting_before(&job.targets));
    match waiting {
        0 => place_by(proxy, &table, params, job, KnownPrefixes::One(matches)),
        _ => PlaceOutcome::Wait,
    }
}

/// Reserves a backend for `job` now, or returns why that is impossible.
pub fn try_place(
    proxy: &Proxy,
    params: &Params,
    job: &PrefillRequest,
    known: KnownPrefixes<'_>,
) -> PlaceOutcome {
    place_by(proxy, &proxy.fleet.table(), params, job, known)
}

/// Reserves a backend for `job` by the roles and costs of `table`.
fn place_by(
    proxy: &Proxy,
    table: &RoutingTable,
    params: &Params,
    job: &PrefillRequest,
    known: KnownPrefixes<'_>,
) -> PlaceOutcome {
    let view = proxy.view(table, known);
    match dispatch::try_place(params, view.now, job, &view) {
        dispatch::PlaceResult::Reserved(leg) => {
            PlaceOutcome::Placed(placed(proxy, &view, job, leg))
        }
        dispatch::PlaceResult::Wait => PlaceOutcome::Wait,
        dispatch::PlaceResult::Unroutable => PlaceOutcome::Unroutable,
    }
}

/// Binds a leg's charges, made by a pass over `view`, to its backend and the dispatcher's signal.
pub fn placed(
    proxy: &Proxy,
    view: &PlacementView<'_>,
    job: &PrefillRequest,
    leg: LegReservation,
) -> ReservedLeg {
    record_reaction(proxy, job.arrived, view.now);
    let backend = Arc::clone(view.backend(leg.on));
    let colocated = leg.stream.is_some();
    let signal = Arc::clone(proxy.queue.signal());
    let mut reservation = Reservation::new(backend, Some(leg.prefill), leg.stream, signal);
    reservation.considered = leg.considered;
    match colocated {
        true => ReservedLeg::Colocated(reservation, leg.predicted),
        false => ReservedLeg::Prefill(reservation, leg.predicted),
    }
}

/// Reserves a decode backend for a prefilled request. Waits for capacity until the hand-off deadline,
/// then takes the best backend even if it is full, because the prefill is already done.
///
/// # Errors
/// [`Failure::NoBackend`] if no backend of the group can be used.
pub async fn find_decode(
    proxy: &Arc<Proxy>,
    settings: &SettingsInForce,
    request: &DecodeRequest,
    deadline: Moment,
) -> Result<Reservation, Failure> {
    let now = proxy.clock.now();
    if let Some(reservation) = try_place_decode(proxy, &settings.placement, request, now) {
        return Ok(reservation);
    }
    proxy.queue.wait_for_decode(request, now, deadline).await
}

/// Places a decode leg that arrived at `arrived`, if a backend has capacity now.
pub fn try_place_decode(
    proxy: &Proxy,
    params: &Params,
    request: &DecodeRequest,
    arrived: Moment,
) -> Option<Reservation> {
    let table = proxy.fleet.table();
    let view = proxy.view(&table, KnownPrefixes::One(Matches::NONE));
    let (on, stream) = dispatch::try_place_decode(params, request, &view)?;
    Some(decoding(proxy, &view, arrived, on, stream))
}

/// Binds a decode leg's charge, made by a pass over `view`, to its backend and the dispatcher's
/// signal. The leg arrived at `arrived`.
pub fn decoding(
    proxy: &Proxy,
    view: &PlacementView<'_>,
    arrived: Moment,
    on: BackendId,
    stream: StreamCharge,
) -> Reservation {
    record_reaction(proxy, arrived, view.now);
    let backend = Arc::clone(view.backend(on));
    Reservation::new(backend, None, Some(stream), Arc::clone(proxy.queue.signal()))
}

/// Measures the reaction time: a leg that arrived at `arrived` was placed by a scan that began at `began`.
fn record_reaction(proxy: &Proxy, arrived: Moment, began: Moment) {
    if let Some(elapsed) = proxy.reaction.placed(arrived, began, || proxy.clock.now()) {
        proxy.metrics.demand_placed(elapsed);
    }
}
