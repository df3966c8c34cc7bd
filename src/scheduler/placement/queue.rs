//! EDF queue per model pool, ordered by TTFT deadline. A request past its latest feasible start
//! moves to the late class, which receives a fixed share of the placed prefill work while feasible
//! requests are queued. Batch work is placed while no other request of its pool is queued. The queue
//! reserves nothing and has no timer: its owner polls it on every change of capacity and at
//! [`EdfQueue::next_deadline`].
//!
//! The cost of a poll of a full pool does not grow with the number of waiting requests: after a
//! refusal, requests of the same kind that need at least as much work are skipped.

mod pool_queue;

use crate::placement::order::order;
use crate::placement::{
    Disaggregation, FleetLoads, LatePolicy, Params, PrefillRequest, RouteDecision,
    UnroutableReason, place, queue_limit,
};
use crate::tuning::{LOOK_AHEAD, RACES_MAX, SAMPLE};
use pool_queue::{Key, PoolQueue, QueueClass};
use std::collections::{BTreeMap, BTreeSet};
use tidegate_types::{Moment, PoolId, RequestId, Role, Seconds};

/// Result for a queued request. The request has left the queue, except after a
/// [`QueueOutcome::Place`] that was answered with [`Reserved::No`].
#[derive(Debug)]
pub enum QueueOutcome<'a> {
    /// A backend has capacity: [`RouteDecision::Prefill`] or [`RouteDecision::Colocated`]. The
    /// callback reserves it before it returns.
    Place(&'a PrefillRequest, RouteDecision),
    /// The queue deadline has passed.
    Expired(PrefillRequest),
    /// The request can no longer meet its TTFT target ([`LatePolicy::Refuse`]).
    Late(PrefillRequest),
    /// No backend can take the request.
    Unroutable(PrefillRequest, UnroutableReason),
}

/// The answer to a [`QueueOutcome`]; only the answer to [`QueueOutcome::Place`] has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// The capacity is reserved, or the request no longer needs it.
    Yes,
    /// Another request has taken the capacity; the request stays in the queue.
    No,
}

/// The queue has reached its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full: {limit} requests wait")]
pub struct QueueFull {
    /// Most queued requests.
    pub limit: usize,
}

/// The queued requests of all pools: they wait for their first leg.
#[derive(Debug)]
pub struct EdfQueue {
    waiting: BTreeMap<RequestId, QueuedRequest>,
    pools: BTreeMap<PoolId, PoolQueue>,
    expiries: BTreeSet<Key>,
    /// Requests queued since the last poll, without an estimate of their prefill work.
    unestimated: Vec<RequestId>,
    limit: usize,
}

#[derive(Debug)]
struct QueuedRequest {
    job: PrefillRequest,
    /// Least prefill work on any backend of the pool, estimated at the first poll.
    work: Seconds,
    /// Latest start that keeps the TTFT deadline; after it the request is in the late class.
    latest_start: Moment,
    class: QueueClass,
}

impl QueuedRequest {
    /// Returns whether the request was feasible on arrival and is no retry after a failure.
    fn may_be_shed(&self) -> bool {
        self.latest_start > self.job.arrived && self.job.excluded.is_empty()
    }
}

/// Result of an attempt to place a request.
enum Tried {
    Left,
    Refused,
}

impl EdfQueue {
    /// Returns an empty queue with the default limit of [`Params`].
    pub fn new() -> EdfQueue {
        EdfQueue::with_limit(Params::default().queue_max)
    }

    /// Returns an empty queue for at most `limit` requests.
    pub fn with_limit(limit: usize) -> EdfQueue {
        EdfQueue {
            waiting: BTreeMap::new(),
            pools: BTreeMap::new(),
            expiries: BTreeSet::new(),
            unestimated: Vec::new(),
            limit,
        }
    }

    /// Adds a request. A request with the same id is replaced.
    ///
    /// # Errors
    /// [`QueueFull`] if the queue has reached its limit.
    pub fn push(&mut self, job: PrefillRequest) -> Result<(), QueueFull> {
        self.remove(job.id);
        let limit = queue_limit(self.limit, &job.targets);
        if self.waiting.len() >= limit {
            return Err(QueueFull { limit });
        }
        let (work, due) = (Seconds::ZERO, job.ttft_deadline);
        let class = if job.is_batch() { QueueClass::Batch } else { QueueClass::Feasible };
        self.expiries.insert((job.queue_deadline, job.id));
        self.unestimated.push(job.id);
        let waiting = QueuedRequest { job, work, latest_start: due, class };
        self.pools.entry(waiting.job.pool).or_default().insert(&waiting);
        self.waiting.insert(waiting.job.id, waiting);
        Ok(())
    }

    /// Removes the request of a client that has disconnected. Returns whether it was queued.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        self.remove(id).is_some()
    }

    /// Places the requests for which a backend has capacity, and removes those that have passed
    /// their queue deadline or that no backend can take. A reservation by `on` must be visible in
    /// `fleet` when `on` returns.
    pub fn poll(
        &mut self,
        params: &Params,
        now: Moment,
        fleet: &impl FleetLoads,
        mut on: impl FnMut(QueueOutcome<'_>) -> Reserved,
    ) {
        self.expire(now, &mut on);
        self.estimate(fleet);
        let pools: Vec<PoolId> = self.pools.keys().copied().collect();
        for pool in pools {
            self.reclassify(params.late, pool, now, &mut on);
            self.place_pool(pool, params, now, fleet, &mut on);
        }
        self.pools.retain(|_, pool_queue| !pool_queue.is_empty());
    }

    /// Returns the time at which a poll is due without an event: the earliest queue deadline.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.expiries.first().map(|(deadline, _)| *deadline)
    }

    /// Returns the number of queued requests.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the number of queued requests of a pool, without batch work.
    pub fn waiting(&self, pool: PoolId) -> usize {
        self.pools.get(&pool).map_or(0, PoolQueue::interactive)
    }

    /// Returns the number of queued requests of batch work of a pool.
    pub fn waiting_batch(&self, pool: PoolId) -> usize {
        self.pools.get(&pool).map_or(0, PoolQueue::batch)
    }

    /// Returns whether a request is queued that is not batch work.
    pub fn has_interactive(&self) -> bool {
        self.pools.values().any(|pool| pool.interactive() > 0)
    }

    fn remove(&mut self, id: RequestId) -> Option<QueuedRequest> {
        let waiting = self.waiting.remove(&id)?;
        self.expiries.remove(&(waiting.job.queue_deadline, id));
        if let Some(pool_queue) = self.pools.get_mut(&waiting.job.pool) {
            pool_queue.remove(&waiting);
        }
        Some(waiting)
    }

    fn expire(&mut self, now: Moment, on: &mut impl FnMut(QueueOutcome<'_>) -> Reserved) {
        while let Some((deadline, id)) = self.expiries.first().copied() {
            if deadline > now {
                break;
            }
            match self.remove(id) {
                Some(waiting) => {
                    on(QueueOutcome::Expired(waiting.job));
                }
                None => {
                    self.expiries.pop_first();
                }
            }
        }
    }

    /// Estimates the prefill work and the latest start of new requests.
    fn estimate(&mut self, fleet: &impl FleetLoads) {
        for id in std::mem::take(&mut self.unestimated) {
            let Some(waiting) = self.waiting.get_mut(&id) else { continue };
            let Some(pool_queue) = self.pools.get_mut(&waiting.job.pool) else { continue };
            pool_queue.remove(waiting);
            let (work, after) = least_prefill(&waiting.job, fleet);
            let due = waiting.job.ttft_deadline;
            waiting.work = work;
            waiting.latest_start = due - work - after;
            pool_queue.insert(waiting);
        }
    }

    /// Moves the requests past their latest start to the late class, or refuses them.
    fn reclassify(
        &mut self,
        policy: LatePolicy,
        pool: PoolId,
        now: Moment,
        on: &mut impl FnMut(QueueOutcome<'_>) -> Reserved,
    ) {
        while let Some(pool_queue) = self.pools.get_mut(&pool)
            && let Some(id) = pool_queue.first_start_before(now)
        {
            let Some(waiting) = self.waiting.get_mut(&id) else { return };
            if policy == LatePolicy::Refuse && waiting.may_be_shed() {
                if let Some(waiting) = self.remove(id) {
                    on(QueueOutcome::Late(waiting.job));
                }
                continue;
            }
            pool_queue.remove(waiting);
            waiting.class = QueueClass::Late;
            pool_queue.insert(waiting);
        }
    }

    fn place_pool(
        &mut self,
        pool: PoolId,
        params: &Params,
        now: Moment,
        fleet: &impl FleetLoads,
        on: &mut impl FnMut(QueueOutcome<'_>) -> Reserved,
    ) {
        let mut scans =
            [QueueClass::Feasible, QueueClass::Late, QueueClass::Batch].map(QueueScan::new);
        // A refusal in the late class does not apply to feasible requests: it may be due to trunk
        // reservation, which refuses only late ones.
        let mut refused = [(); 3].map(|()| RefusedWork::default());
        loop {
            let Some(pool_queue) = self.pools.get(&pool) else { return };
            let first = usize::from(pool_queue.late_class_is_due());
            let batch = (pool_queue.interactive() == 0).then_some(2);
            let Some((scan, id)) = [first, 1 - first]
                .into_iter()
                .chain(batch)
                .find_map(|which| scans[which].next(pool_queue).map(|id| (which, id)))
            else {
                return;
            };
            let Some(waiting) = self.waiting.get(&id) else { return };
            let (disaggregation, work, class) =
                (waiting.job.disaggregation, waiting.work, waiting.class);
            if refused[..=scan].iter().any(|refused| refused.covers(disaggregation, work)) {
                scans[scan].pass();
                continue;
            }
            match self.try_one(id, params, now, fleet, on) {
                Tried::Refused => {
                    refused[scan].note(disaggregation, work);
                    scans[scan].pass();
                }
                Tried::Left => {
                    if let Some(pool_queue) = self.pools.get_mut(&pool) {
                        pool_queue.charge(class, work, params.late_class_share);
                    }
                }
            }
        }
    }

    fn try_one(
        &mut self,
        id: RequestId,
        params: &Params,
        now: Moment,
        fleet: &impl FleetLoads,
        on: &mut impl FnMut(QueueOutcome<'_>) -> Reserved,
    ) -> Tried {
        let Some(waiting) = self.waiting.get(&id) else { return Tried::Refused };
        for _ in 0..RACES_MAX {
            match place(params, now, &waiting.job, fleet) {
                RouteDecision::Wait(_) => return Tried::Refused,
                RouteDecision::Unroutable(reason) => {
                    if let Some(waiting) = self.remove(id) {
                        on(QueueOutcome::Unroutable(waiting.job, reason));
                    }
                    return Tried::Left;
                }
                choice @ (RouteDecision::Prefill { .. } | RouteDecision::Colocated { .. }) => {
                    if on(QueueOutcome::Place(&waiting.job, choice)) == Reserved::Yes {
                        self.remove(id);
                        return Tried::Left;
                    }
                }
            }
        }
        Tried::Refused
    }
}

impl Default for EdfQueue {
    fn default() -> EdfQueue {
        EdfQueue::new()
    }
}

/// One pass over the requests of one class, in order.
struct QueueScan {
    class: QueueClass,
    /// The last request that was skipped or refused.
    passed: Option<Key>,
    at: Option<Key>,
    left: usize,
}

impl QueueScan {
    fn new(class: QueueClass) -> QueueScan {
        QueueScan { class, passed: None, at: None, left: LOOK_AHEAD }
    }

    /// Returns the first request after those that were skipped or refused.
    fn next(&mut self, pool_queue: &PoolQueue) -> Option<RequestId> {
        if self.left == 0 {
            return None;
        }
        self.at = pool_queue.after(self.class, self.passed);
        self.at.map(|(_, id)| id)
    }

    fn pass(&mut self) {
        self.passed = self.at;
        self.left -= 1;
    }
}

/// The least prefill work that was refused in this poll, for each kind of request. Requests of that
/// kind with at least as much work are refused without another scan of the pool.
#[derive(Default)]
struct RefusedWork {
    allowed: Option<Seconds>,
    never: Option<Seconds>,
}

impl RefusedWork {
    fn covers(&self, disaggregation: Disaggregation, work: Seconds) -> bool {
        let least = match disaggregation {
            Disaggregation::Allowed => self.allowed,
            Disaggregation::Never => self.never,
        };
        least.is_some_and(|least| work >= least)
    }

    fn note(&mut self, disaggregation: Disaggregation, work: Seconds) {
        match disaggregation {
            Disaggregation::Allowed => self.allowed = Some(work),
            Disaggregation::Never => self.never = Some(work),
        }
    }
}

/// Returns the least prefill work of a request on any backend, if idle, and the time from its end to
/// the first token. With prefill backends that time is the shortest hand-off plus one TPOT, for the
/// first decode step; otherwise it is 0. Both are 0 without an open backend.
fn least_prefill(job: &PrefillRequest, fleet: &impl FleetLoads) -> (Seconds, Seconds) {
    let backends = fleet.pool(job.pool);
    let sample = order(backends.len(), job.seed).take(SAMPLE).map(|index| backends[index]);
    let holders = fleet.holders(job);
    let holders = holders.entries().iter().map(|(holder, _)| *holder);
    let known = holders.filter(|holder| backends.contains(holder));
    let mut least = None;
    let mut hand_off: Option<Seconds> = None;
    for backend in sample.chain(known) {
        let load = fleet.load(backend);
        if load.is_open() {
            let cached = fleet.cached(job, backend);
            let work = load.prefill_model.predict(job.prompt - cached, cached);
            least = Some(least.map_or(work, |least: Seconds| least.min(work)));
            if load.role == Role::Prefill && job.disaggregation == Disaggregation::Allowed {
                let takes = load.transfer_model.predict(job.prompt);
                hand_off = Some(hand_off.map_or(takes, |least| least.min(takes)));
            }
        }
    }
    let after = hand_off.map_or(Seconds::ZERO, |hand_off| hand_off + job.targets.slo.tpot);
    (least.unwrap_or(Seconds::ZERO), after)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
