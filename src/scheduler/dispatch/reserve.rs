//! Placement with reservation. A lost race for the capacity repeats the placement.

use crate::dispatch::Accounts;
use crate::dispatch::one_reading::OneReading;
use crate::inflight::{BacklogBound, ConcurrentStreams, PrefillCharge, StreamCharge};
use crate::placement::{
    Considered, DecodeRequest, Params, PrefillRequest, RouteDecision, considered, place,
    place_decode,
};
use crate::shared_u64::SharedU64;
use crate::tuning::RACES_MAX;
use tidegate_types::{BackendId, Moment, Seconds, Tokens};

/// A reserved first leg.
#[derive(Debug)]
pub struct LegReservation<W: SharedU64> {
    /// The backend.
    pub on: BackendId,
    /// The charge of the prefill.
    pub prefill: PrefillCharge<W>,
    /// The charge of the stream if the request is colocated; `None` for a prefill leg.
    pub stream: Option<StreamCharge<W>>,
    /// The prediction of the placement.
    pub predicted: Predicted,
    /// The candidates of the placement, if [`Accounts::records_candidates`].
    pub considered: Option<Box<[Considered]>>,
}

/// Placement's prediction for a leg.
#[derive(Clone, Copy, Debug)]
pub struct Predicted {
    /// Prefill time of this request on an idle engine.
    pub prefill: Seconds,
    /// Duration of the prefill backlog before it.
    pub ahead: Seconds,
    /// Prompt tokens that the prefix index predicts to be cached on the backend.
    pub predicted_hit: Tokens,
    /// The part of them that `prefill` assumes to be cached.
    pub cached: Tokens,
    /// Decode streams on the backend at the placement.
    pub beside: ConcurrentStreams,
}

/// Outcome of [`try_place`].
#[derive(Debug)]
pub enum PlaceResult<W: SharedU64> {
    /// A reservation.
    Reserved(LegReservation<W>),
    /// No backend has capacity now.
    Wait,
    /// No backend is usable.
    Unroutable,
}

/// Reserves a backend for a request's first leg now, or returns why that is impossible.
pub fn try_place<A: Accounts>(
    params: &Params,
    now: Moment,
    job: &PrefillRequest,
    fleet: &A,
) -> PlaceResult<A::Counter> {
    for _ in 0..RACES_MAX {
        // A record of the candidates needs all loads once more.
        let result = match fleet.records_candidates() {
            true => try_once(params, now, job, &OneReading::new(fleet, job.pool)),
            false => try_once(params, now, job, fleet),
        };
        if let Some(result) = result {
            return result;
        }
    }
    PlaceResult::Wait
}

/// Places and reserves. Returns `None` if another thread has reserved the capacity meanwhile.
fn try_once<A: Accounts>(
    params: &Params,
    now: Moment,
    job: &PrefillRequest,
    fleet: &A,
) -> Option<PlaceResult<A::Counter>> {
    match place(params, now, job, fleet) {
        RouteDecision::Wait(_) => Some(PlaceResult::Wait),
        RouteDecision::Unroutable(_) => Some(PlaceResult::Unroutable),
        choice @ (RouteDecision::Prefill { .. } | RouteDecision::Colocated { .. }) => {
            reserve(params, now, job, choice, fleet).map(PlaceResult::Reserved)
        }
    }
}

/// Charges the backend of `choice`. Returns `None` if another thread has reserved the capacity since
/// the decision, or if `choice` has no backend.
pub(super) fn reserve<A: Accounts>(
    params: &Params,
    now: Moment,
    job: &PrefillRequest,
    choice: RouteDecision,
    fleet: &A,
) -> Option<LegReservation<A::Counter>> {
    let (on, work, cached, colocated) = match choice {
        RouteDecision::Prefill { on, predicted, cached } => (on, predicted, cached, false),
        RouteDecision::Colocated { on, predicted, cached } => (on, predicted, cached, true),
        RouteDecision::Wait(_) | RouteDecision::Unroutable(_) => return None,
    };
    let (account, load) = (fleet.account(on), fleet.load(on));
    let uncached = job.prompt - cached;
    let bound =
        BacklogBound { work: params.prefill_backlog_max, tokens: params.step_tokens_max(uncached) };
    // Read before the charge, which is part of the load afterwards.
    let candidates =
        fleet.records_candidates().then(|| considered(params, now, job, fleet, (on, &load)));
    let prefill = account.try_charge_prefill(work, uncached, bound)?;
    let stream = match colocated {
        true => Some(account.try_open_stream(job.prompt, &job.targets, load.streams_max)?),
        false => None,
    };
    let predicted = Predicted {
        prefill: load.prefill_model.batch(work),
        ahead: (load.prefill - load.prefill_model.base).max(Seconds::ZERO),
        predicted_hit: fleet.predicted_hit(job, on),
        cached,
        beside: ConcurrentStreams {
            streams: load.streams,
            kv: load.kv,
            mid_step: load.prefill <= Seconds::ZERO,
        },
    };
    Some(LegReservation { on, prefill, stream, predicted, considered: candidates })
}

/// Reserves a decode backend for a prefilled request now, if one has capacity.
pub fn try_place_decode<A: Accounts>(
    params: &Params,
    request: &DecodeRequest,
    fleet: &A,
) -> Option<(BackendId, StreamCharge<A::Counter>)> {
    for _ in 0..RACES_MAX {
        let on = place_decode(params, request, fleet)?;
        let (targets, streams_max) = (&request.targets, fleet.load(on).streams_max);
        if let Some(stream) = fleet.account(on).try_open_stream(request.kv, targets, streams_max) {
            return Some((on, stream));
        }
    }
    None
}
