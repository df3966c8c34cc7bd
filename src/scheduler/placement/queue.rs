//! EDF queue per model pool, ordered by TTFT deadline. A request past its latest feasible start
//! moves to the late class, which receives a fixed share of the placed work. The queue reserves
//! nothing and has no timer: its owner polls it on every change of capacity and at
//! [`EdfQueue::next_deadline`].
//!
//! The cost of a poll of a full pool does not grow with the number of waiting requests: after a
//! refusal, requests of the same kind that need at least as much work are skipped.

mod pool_queue;

use crate::placement::order::order;
use crate::placement::{
    Disaggregation, Fleet, LatePolicy, Params, PrefillRequest, RouteDecision, UnroutableReason,
    place,
};
use crate::tuning::{LOOK_AHEAD, RACES_MAX, SAMPLE};
use pool_queue::{Key, PoolQueue, QueueClass};
use std::collections::{BTreeMap, BTreeSet};
use tidegate_types::{Moment, PoolId, RequestId, Role, Seconds};

/// The result for a waiting job. The job has left the queue, except where [`QueueOutcome::Place`] was
/// answered with [`Reserved::No`].
#[derive(Debug)]
pub enum QueueOutcome<'a> {
    /// A backend has capacity: [`RouteDecision::Prefill`] or [`RouteDecision::Colocated`]. Reserve it before
    /// answering.
    Place(&'a PrefillRequest, RouteDecision),
    /// The queue deadline has passed.
    Expired(PrefillRequest),
    /// It can no longer meet its TTFT target ([`LatePolicy::Refuse`]).
    Late(PrefillRequest),
    /// No backend can take the job.
    Unroutable(PrefillRequest, UnroutableReason),
}

/// The answer to an [`QueueOutcome`]; only the answer to [`QueueOutcome::Place`] has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// The capacity is reserved, or the job needs none any more.
    Yes,
    /// Another request has taken the capacity; the job stays in the queue.
    No,
}

/// The queue has reached its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full: {limit} requests wait")]
pub struct QueueFull {
    /// Most jobs that may wait.
    pub limit: usize,
}

/// The requests of all pools that wait for their first leg.
#[derive(Debug)]
pub struct EdfQueue {
    waiting: BTreeMap<RequestId, QueuedRequest>,
    pools: BTreeMap<PoolId, PoolQueue>,
    expiries: BTreeSet<Key>,
    /// Jobs offered since the last poll, whose prefill work is not estimated yet.
    unestimated: Vec<RequestId>,
    limit: usize,
}

#[derive(Debug)]
struct QueuedRequest {
    job: PrefillRequest,
    /// Prefill work on the backend of the pool that needs least, estimated at the first poll.
    work: Seconds,
    /// Latest feasible start; afterwards the job belongs to the late class.
    latest_start: Moment,
    class: QueueClass,
}

impl QueuedRequest {
    /// Returns whether the job became late in the queue: it was feasible on arrival, and it is no
    /// retry after a failure.
    fn may_be_shed(&self) -> bool {
        self.latest_start > self.job.arrived && self.job.excluded.is_empty()
    }
}

/// Result of an attempt to place a job.
enum Tried {
    Left,
    Refused,
}

impl EdfQueue {
    /// Returns an empty queue with the default limit of [`Params`].
    pub fn new() -> EdfQueue {
        EdfQueue::with_limit(Params::default().queue_max)
    }

    /// Returns an empty queue for at most `limit` jobs.
    pub fn with_limit(limit: usize) -> EdfQueue {
        EdfQueue {
            waiting: BTreeMap::new(),
            pools: BTreeMap::new(),
            expiries: BTreeSet::new(),
            unestimated: Vec::new(),
            limit,
        }
    }

    /// Adds a job. Ids are unique: a second job with the same id replaces the first.
    ///
    /// # Errors
    /// [`QueueFull`] if the queue has reached its limit.
    pub fn push(&mut self, job: PrefillRequest) -> Result<(), QueueFull> {
        self.remove(job.id);
        if self.waiting.len() >= self.limit {
            return Err(QueueFull { limit: self.limit });
        }
        let (work, due) = (Seconds::ZERO, job.ttft_deadline);
        self.expiries.insert((job.queue_deadline, job.id));
        self.unestimated.push(job.id);
        let waiting = QueuedRequest { job, work, latest_start: due, class: QueueClass::Feasible };
        self.pools.entry(waiting.job.pool).or_default().insert(&waiting);
        self.waiting.insert(waiting.job.id, waiting);
        Ok(())
    }

    /// Removes the job of a client that has left. Returns whether it was waiting.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        self.remove(id).is_some()
    }

    /// Places the jobs that fit now, and removes those that have passed their queue deadline or
    /// that no backend can take. `fleet` must show the capacity that `on` has reserved by the time
    /// `on` returns.
    pub fn poll(
        &mut self,
        params: &Params,
        now: Moment,
        fleet: &impl Fleet,
        mut on: impl FnMut(QueueOutcome<'_>) -> Reserved,
    ) {
        self.expire(now, &mut on);
        self.estimate(params, fleet);
        let pools: Vec<PoolId> = self.pools.keys().copied().collect();
        for pool in pools {
            self.reclassify(params.late, pool, now, &mut on);
            self.place_pool(pool, params, now, fleet, &mut on);
        }
        self.pools.retain(|_, pool_queue| !pool_queue.is_empty());
    }

    /// Returns when a poll is due without any event: the earliest queue deadline.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.expiries.first().map(|(deadline, _)| *deadline)
    }

    /// Returns the number of waiting jobs.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the number of requests that wait for a pool.
    pub fn waiting(&self, pool: PoolId) -> usize {
        self.pools.get(&pool).map_or(0, PoolQueue::len)
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

    /// Estimates the prefill work and the latest feasible start of new jobs.
    fn estimate(&mut self, params: &Params, fleet: &impl Fleet) {
        for id in std::mem::take(&mut self.unestimated) {
            let Some(waiting) = self.waiting.get_mut(&id) else { continue };
            let Some(pool_queue) = self.pools.get_mut(&waiting.job.pool) else { continue };
            pool_queue.remove(waiting);
            let (work, after) = least_prefill(params, &waiting.job, fleet);
            let due = waiting.job.ttft_deadline;
            waiting.work = work;
            waiting.latest_start = due - work - after;
            pool_queue.insert(waiting);
        }
    }

    /// Moves the jobs past their latest feasible start to the late class, or refuses them.
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
        fleet: &impl Fleet,
        on: &mut impl FnMut(QueueOutcome<'_>) -> Reserved,
    ) {
        let mut scans = [QueueScan::new(QueueClass::Feasible), QueueScan::new(QueueClass::Late)];
        // A refusal in the late class does not apply to feasible jobs: trunk reservation refuses
        // only late ones.
        let mut refused = [RefusedWork::default(), RefusedWork::default()];
        loop {
            let Some(pool_queue) = self.pools.get(&pool) else { return };
            let first = usize::from(pool_queue.late_class_is_due());
            let Some((scan, id)) = [first, 1 - first]
                .into_iter()
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
        fleet: &impl Fleet,
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

/// One pass over the jobs of one class, in order.
struct QueueScan {
    class: QueueClass,
    /// The last job that was skipped or refused.
    passed: Option<Key>,
    at: Option<Key>,
    left: usize,
}

impl QueueScan {
    fn new(class: QueueClass) -> QueueScan {
        QueueScan { class, passed: None, at: None, left: LOOK_AHEAD }
    }

    /// Returns the first request that was not skipped or refused.
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

/// The least work that was refused in this poll, by whether the job may be split. Jobs that need at
/// least as much are refused too.
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

/// Returns a job's prefill work on the backend that needs least, if idle, and the time from the end
/// of that work to the first token: where engines only prefill, the shortest hand-off and the next
/// step of the decode engine, which takes up to the TPOT target; otherwise 0. Both are 0 without an open
/// backend.
fn least_prefill(params: &Params, job: &PrefillRequest, fleet: &impl Fleet) -> (Seconds, Seconds) {
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
    let after = hand_off.map_or(Seconds::ZERO, |hand_off| hand_off + params.slo.tpot);
    (least.unwrap_or(Seconds::ZERO), after)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
