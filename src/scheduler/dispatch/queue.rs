//! The queued requests, and the pass that places those for which a backend has capacity.

use crate::dispatch::reserve::reserve;
use crate::dispatch::{Accounts, LegReservation, try_place_decode};
use crate::inflight::StreamCharge;
use crate::placement::{
    DecodeRequest, EdfQueue, Params, PrefillRequest, QueueFull, QueueOutcome, Reserved,
    place_decode_overdue,
};
use crate::shared_u64::SharedU64;
use crate::tuning::LONGEST_PAUSE;
use std::collections::VecDeque;
use tidegate_types::{BackendId, Moment, PoolId, RequestId, Seconds};

/// A prefilled request that is queued for a decode backend.
#[derive(Clone, Debug)]
pub struct WaitingDecode {
    /// The request.
    pub request: DecodeRequest,
    /// Time at which its prefill ended.
    pub arrived: Moment,
    /// Hand-off deadline: from then on it takes a decode backend without capacity too.
    pub deadline: Moment,
}

/// Result for a queued request, which has left the queue.
#[derive(Debug)]
pub enum DispatchOutcome<'a, W: SharedU64> {
    /// Its first leg is reserved.
    Reserved(&'a PrefillRequest, LegReservation<W>),
    /// Its decode leg is reserved.
    Decoding(&'a WaitingDecode, BackendId, StreamCharge<W>),
    /// It is refused.
    Refused(RequestId, Refusal),
}

/// Reason for the refusal of a queued request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refusal {
    /// The queue deadline has passed.
    QueueDeadline {
        /// Time in the queue.
        waited: Seconds,
    },
    /// The TTFT target can no longer be met ([`LatePolicy::Refuse`](crate::placement::LatePolicy)).
    Late {
        /// Time in the queue.
        waited: Seconds,
    },
    /// No backend is usable.
    NoBackend,
}

/// Queued requests: those that need their first leg, in EDF order, and prefilled ones that need a
/// decode backend, oldest first.
#[derive(Debug)]
pub struct DispatchQueue {
    prefills: EdfQueue,
    decodes: VecDeque<WaitingDecode>,
}

impl DispatchQueue {
    /// Returns an empty queue for at most `limit` requests that wait for their first leg.
    pub fn with_limit(limit: usize) -> DispatchQueue {
        DispatchQueue { prefills: EdfQueue::with_limit(limit), decodes: VecDeque::new() }
    }

    /// Adds a request.
    ///
    /// # Errors
    /// [`QueueFull`] if the limit is reached.
    pub fn push(&mut self, job: PrefillRequest) -> Result<(), QueueFull> {
        self.prefills.push(job)
    }

    /// Adds a prefilled request. The limit does not apply: its prefill is done.
    pub fn push_decode(&mut self, waiting: WaitingDecode) {
        self.decodes.push_back(waiting);
    }

    /// Removes the request of a client that has disconnected.
    pub fn cancel(&mut self, id: RequestId) {
        self.prefills.cancel(id);
        self.decodes.retain(|waiting| waiting.request.id != id);
    }

    /// Places the requests for which a backend has capacity, prefilled ones first because they hold
    /// KV memory, and removes those whose deadline has passed. Returns whether one was placed.
    pub fn pass<A: Accounts>(
        &mut self,
        params: &Params,
        now: Moment,
        fleet: &A,
        mut on: impl FnMut(DispatchOutcome<'_, A::Counter>),
    ) -> bool {
        let decoding = self.place_decodes(params, now, fleet, &mut on);
        let mut any = decoding;
        self.prefills.poll(params, now, fleet, |outcome| {
            match outcome {
                QueueOutcome::Place(job, choice) => {
                    match reserve(params, now, job, choice, fleet) {
                        Some(placed) => {
                            any = true;
                            on(DispatchOutcome::Reserved(job, placed));
                        }
                        None => return Reserved::No,
                    }
                }
                QueueOutcome::Expired(job) => {
                    let waited = now - job.arrived;
                    on(DispatchOutcome::Refused(job.id, Refusal::QueueDeadline { waited }));
                }
                QueueOutcome::Late(job) => {
                    let waited = now - job.arrived;
                    on(DispatchOutcome::Refused(job.id, Refusal::Late { waited }));
                }
                QueueOutcome::Unroutable(job, _) => {
                    on(DispatchOutcome::Refused(job.id, Refusal::NoBackend))
                }
            }
            Reserved::Yes
        });
        any
    }

    fn place_decodes<A: Accounts>(
        &mut self,
        params: &Params,
        now: Moment,
        fleet: &A,
        on: &mut impl FnMut(DispatchOutcome<'_, A::Counter>),
    ) -> bool {
        let mut any = false;
        self.decodes.retain(|waiting| {
            let overdue = || {
                let on = place_decode_overdue(&waiting.request, fleet)?;
                let DecodeRequest { kv, targets, .. } = &waiting.request;
                Some((on, fleet.account(on).open_stream(*kv, targets)))
            };
            let placed = match try_place_decode(params, &waiting.request, fleet) {
                None if now < waiting.deadline => return true,
                None => overdue(),
                placed => placed,
            };
            any |= placed.is_some();
            on(match placed {
                Some((backend, stream)) => DispatchOutcome::Decoding(waiting, backend, stream),
                None => DispatchOutcome::Refused(waiting.request.id, Refusal::NoBackend),
            });
            false
        });
        any
    }

    /// Returns the time at which a pass is due without a change of capacity: the earliest deadline,
    /// at the latest [`LONGEST_PAUSE`] after `now`.
    pub fn next_deadline(&self, now: Moment) -> Moment {
        let prefill = self.prefills.next_deadline().unwrap_or(Moment::NEVER);
        let decode = self.decodes.iter().map(|waiting| waiting.deadline).min();
        (now + LONGEST_PAUSE).min(prefill).min(decode.unwrap_or(Moment::NEVER))
    }

    /// Returns whether no request is queued.
    pub fn is_empty(&self) -> bool {
        self.prefills.is_empty() && self.decodes.is_empty()
    }

    /// Returns the number of requests of a pool that are queued for their first leg, without batch
    /// work.
    pub fn waiting(&self, pool: PoolId) -> usize {
        self.prefills.waiting(pool)
    }

    /// Returns the number of requests of batch work of a pool that are queued for their first leg.
    pub fn waiting_batch(&self, pool: PoolId) -> usize {
        self.prefills.waiting_batch(pool)
    }

    /// Returns whether a request is queued that is not batch work.
    pub fn has_interactive(&self) -> bool {
        let is_interactive = |waiting: &WaitingDecode| !waiting.request.targets.is_batch();
        self.prefills.has_interactive() || self.decodes.iter().any(is_interactive)
    }

    /// Returns the number of prefilled requests that are queued for a decode backend.
    pub fn waiting_decodes(&self) -> usize {
        self.decodes.len()
    }
}
