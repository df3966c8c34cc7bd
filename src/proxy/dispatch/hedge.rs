//! Hedging: a leg without a first byte after several times its predicted time is also sent to a
//! second engine, and the first answer wins. A request has at most one hedge. To avoid amplifying
//! an overload, hedges are limited to a small share of the requests in flight and to backends with
//! free capacity.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use tidegate_types::BackendId;

use crate::backends::fleet::{InflightRequest, KnownPrefixes};
use crate::dispatch::answer::OpenedAnswer;
use crate::dispatch::hedge_limit::HedgePermit;
use crate::dispatch::legs;
use crate::dispatch::place::{self, PlaceOutcome};
use crate::dispatch::reservation::ReservedLeg;
use crate::dispatch::serving::{AttemptError, Serving};
use crate::dispatch::settle::{LegNotes, RequestProgress};
use crate::upstream::failure::LegFailure;

/// Result of an attempt with at most one hedge.
pub(crate) struct HedgedResult {
    /// Outcome of the request.
    pub(crate) result: Result<OpenedAnswer, AttemptError>,
    /// Failure of the losing leg.
    pub(crate) other_failure: Option<LegFailure>,
    /// Notes of the hedge, if its result counts.
    pub(crate) hedge_notes: Option<LegNotes>,
    /// The first engine, if the hedge answered while the first leg was still running.
    pub(crate) overtaken: Option<BackendId>,
}

impl From<Result<OpenedAnswer, AttemptError>> for HedgedResult {
    fn from(result: Result<OpenedAnswer, AttemptError>) -> HedgedResult {
        HedgedResult { result, other_failure: None, hedge_notes: None, overtaken: None }
    }
}

/// Reserves a backend for a hedge, without queueing and not on a suspect. `None` if there is none, or if
/// the limit of hedges is reached.
pub(crate) fn place<'a>(
    serving: &Serving<'a>,
    first: BackendId,
) -> Option<(HedgePermit<'a>, Serving<'a>, ReservedLeg)> {
    let proxy = serving.proxy;
    let hedge = proxy.hedge_limit.try_acquire(proxy.fleet.registry.len())?;
    let mut job = serving.job.clone();
    job.excluded.insert(first);
    let (params, known) = (&serving.settings().placement, KnownPrefixes::One(&serving.matches));
    let PlaceOutcome::Placed(placed) = place::try_place(proxy, params, &job, known) else {
        return None;
    };
    let last = proxy.fleet.backend(placed.on()).health.is_suspect(proxy.clock.now());
    if last || job.excluded.contains(placed.on()) {
        return None;
    }
    // The first engine is excluded from this placement only: if the hedge's engine dies, the request
    // can return to the first, which may be the only other one.
    let job = serving.job.clone();
    let (inbound, accepted, matches) = (serving.inbound, serving.accepted, serving.matches);
    let slow = AtomicBool::default();
    Some((hedge, Serving { proxy, inbound, accepted, job, matches, slow }, placed))
}

/// Runs a hedge concurrently with the first leg. The first answer wins.
pub(crate) async fn race(
    mut first: Pin<&mut impl Future<Output = Result<OpenedAnswer, AttemptError>>>,
    on: BackendId,
    second: (HedgePermit<'_>, Serving<'_>, ReservedLeg),
    live: &InflightRequest,
    attempt: u32,
) -> HedgedResult {
    let (_hedge, serving, mut placed) = second;
    let considered = placed.take_considered();
    let mut notes = LegNotes::of_hedge(attempt, considered);
    let mut progress = RequestProgress::new(serving.accepted, live, &mut notes);
    let mut other = Box::pin(legs::attempt(&serving, placed, &mut progress));
    let (result, other_failure, by_hedge) = tokio::select! {
        biased;
        done = first.as_mut() => match done {
            Err(AttemptError::Retryable(failure)) => ((&mut other).await, Some(failure), true),
            done => (done, None, false),
        },
        done = &mut other => match done {
            Ok(opened) => (Ok(opened), None, true),
            Err(AttemptError::Retryable(failure)) => (first.as_mut().await, Some(failure), false),
            Err(AttemptError::Final(_)) => (first.as_mut().await, None, false),
        },
    };
    drop(other);
    let overtaken = (by_hedge && other_failure.is_none() && result.is_ok()).then_some(on);
    HedgedResult { result, other_failure, hedge_notes: by_hedge.then_some(notes), overtaken }
}
