//! Hedging: a leg without a first byte after several times its predicted time is also sent to a
//! second engine, and the first answer wins. To avoid amplifying an overload, hedges are limited to
//! one a request, a small share of the requests in flight, and backends with free capacity.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use tidegate_types::BackendId;

use crate::backends::fleet::{InflightRequest, Known};
use crate::dispatch::answer::Opened;
use crate::dispatch::legs;
use crate::dispatch::place::{self, Placed, Try};
use crate::dispatch::serving::{Miss, Serving};
use crate::dispatch::settle::{Course, Notes, RequestRecord};
use crate::upstream::failure::LegFailure;

/// Hedges in flight that are allowed whatever the load is, so that small fleets can hedge.
const HEDGES_MIN: usize = 2;
/// In-flight requests per hedge: 5 % may be hedged.
const LIVE_PER_HEDGE: usize = 20;

/// Hedges in flight.
#[derive(Debug, Default)]
pub struct Hedges(AtomicUsize);

/// One of them.
pub(crate) struct Hedge<'a>(&'a Hedges);

impl Drop for Hedge<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

impl Hedges {
    fn begin(&self, live: usize) -> Option<Hedge<'_>> {
        let most = HEDGES_MIN + live / LIVE_PER_HEDGE;
        let hedge = Hedge(self);
        // Counted first, so that the drop of one too many takes it back.
        (self.0.fetch_add(1, Relaxed) < most).then_some(hedge)
    }
}

/// How the legs of a request raced.
pub(crate) struct Raced {
    /// The request's outcome.
    pub(crate) result: Result<Opened, Miss>,
    /// The other leg's failure.
    pub(crate) also: Option<LegFailure>,
    /// The second leg has it, and these are its notes.
    pub(crate) second: Option<Notes>,
    /// The engine that had it first, alone, and was overtaken.
    pub(crate) overtaken: Option<BackendId>,
}

impl From<Result<Opened, Miss>> for Raced {
    fn from(result: Result<Opened, Miss>) -> Raced {
        Raced { result, also: None, second: None, overtaken: None }
    }
}

/// A place for a second leg, at once and on an engine that is well; `None` if there is none, or if
/// there are enough hedges.
pub(crate) fn place<'a>(
    serving: &Serving<'a>,
    first: BackendId,
) -> Option<(Hedge<'a>, Serving<'a>, Placed)> {
    let proxy = serving.proxy;
    let hedge = proxy.hedges.begin(proxy.fleet.registry.len())?;
    let mut job = serving.job.clone();
    job.excluded.insert(first);
    let Try::Placed(placed) = place::try_place(proxy, &job, Known::One(&serving.matches)) else {
        return None;
    };
    let last = proxy.fleet.backend(placed.on()).health.is_last(proxy.clock.now());
    if last || job.excluded.contains(placed.on()) {
        return None;
    }
    // The first leg's engine stays open to the request: if this leg's engine dies, the request can go
    // back there, and is not held on a dead engine because no third one exists.
    let job = serving.job.clone();
    let (inbound, accepted, matches) = (serving.inbound, serving.accepted, serving.matches);
    let late = AtomicBool::default();
    Some((hedge, Serving { proxy, inbound, accepted, job, matches, late }, placed))
}

/// Run the second leg beside the first.
pub(crate) async fn race(
    mut first: Pin<&mut impl Future<Output = Result<Opened, Miss>>>,
    on: BackendId,
    second: (Hedge<'_>, Serving<'_>, Placed),
    live: &InflightRequest,
    attempt: u32,
) -> Raced {
    let (_hedge, serving, mut placed) = second;
    let considered = placed.take_considered();
    let mut notes = Notes { attempts: attempt, considered, ..Notes::default() };
    let mut course = Course { accepted: serving.accepted, live, notes: &mut notes };
    let mut other = Box::pin(legs::attempt(&serving, placed, &mut course));
    let (result, also, by_second) = tokio::select! {
        biased;
        done = first.as_mut() => match done {
            Err(Miss::Elsewhere(failure)) => ((&mut other).await, Some(failure), true),
            done => (done, None, false),
        },
        done = &mut other => match done {
            Ok(opened) => (Ok(opened), None, true),
            Err(Miss::Elsewhere(failure)) => (first.as_mut().await, Some(failure), false),
            Err(Miss::Final(_)) => (first.as_mut().await, None, false),
        },
    };
    drop(other);
    let overtaken = (by_second && also.is_none() && result.is_ok()).then_some(on);
    Raced { result, also, second: by_second.then_some(notes), overtaken }
}

/// The second leg has won: the request's record says so.
pub(crate) fn adopt(record: &mut RequestRecord, notes: Notes) {
    if let Some(on) = &notes.decode_on {
        record.live.decodes_on(on.id);
    }
    // A hedge is no further attempt.
    record.notes = Notes { attempts: record.notes.attempts, ..notes };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_are_a_few_and_a_share_of_the_live_requests() {
        let hedges = Hedges::default();
        let some: Vec<_> = (0..5).map(|_| hedges.begin(0)).collect();
        assert_eq!(some.iter().flatten().count(), HEDGES_MIN);
        assert!(hedges.begin(LIVE_PER_HEDGE).is_some(), "more live requests, more hedges");
        drop(some);
        assert_eq!(hedges.0.load(Relaxed), 0);
    }
}
