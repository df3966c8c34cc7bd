//! Route of a request. A scan makes at most two passes over the pool. The first respects roles. The
//! second runs if the first finds no route, and ignores roles in groups that have lost all prefill or
//! all decode backends, and for requests that must be colocated. The scan is repeated with suspects,
//! then with backends on which the request has failed, until a route is found. Allocates nothing.

use crate::placement::candidate::{Candidate, Evaluation, with_hand_off};
use crate::placement::order::order;
use crate::placement::{BackendLoad, Disaggregation, FleetLoads, Params, PrefillRequest};
use crate::tuning::{HOLDER_SAVES, SAMPLE};
use tidegate_types::{BackendId, GroupId, Moment, Role, Seconds, Tokens};

/// Groups that are tracked separately in one pool. In a pool with more, some groups share their
/// state, and a prefill may start in a group without decode capacity.
const GROUPS: usize = 64;

/// The route of a request, or the reason why it has none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RouteDecision {
    /// Send the prefill leg to this backend; the decode backend is chosen when the prefill is done.
    Prefill {
        /// The backend.
        on: BackendId,
        /// Predicted prefill work to reserve: the time that the prompt adds to the engine's steps.
        predicted: Seconds,
        /// Prompt tokens in the prefix cache of the backend.
        cached: Tokens,
    },
    /// Send the colocated request to this backend.
    Colocated {
        /// The backend.
        on: BackendId,
        /// Predicted prefill work to reserve: the time that the prompt adds to the engine's steps.
        predicted: Seconds,
        /// Prompt tokens in the prefix cache of the backend.
        cached: Tokens,
    },
    /// No backend has capacity now.
    Wait(WaitReason),
    /// No backend can take the request in the present state of the pool.
    Unroutable(UnroutableReason),
}

/// The capacity that is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WaitReason {
    /// Every backend that takes prefills is at its prefill backlog bound, or the idle ones are left to
    /// other requests: to feasible ones (trunk reservation), or by batch work to interactive ones.
    PrefillBusy,
    /// A prefill could start, but no backend has decode capacity for the stream.
    DecodeBusy,
}

impl RouteDecision {
    /// Returns the predicted prefill work of a route; `None` without one.
    fn predicted(&self) -> Option<Seconds> {
        match self {
            RouteDecision::Prefill { predicted, .. }
            | RouteDecision::Colocated { predicted, .. } => Some(*predicted),
            RouteDecision::Wait(_) | RouteDecision::Unroutable(_) => None,
        }
    }
}

/// Why no backend can take the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnroutableReason {
    /// The pool has no backend.
    EmptyPool,
    /// No backend of the pool is usable.
    NoneUsable,
    /// All usable backends are draining.
    AllDraining,
    /// The usable backends serve no colocated requests, and no group has backends for both legs.
    Unpaired,
}

/// Returns the backend for `job` with the least predicted completion time among those with
/// capacity; backends that keep the TTFT deadline come before those that do not.
///
/// A role is a preference: in a group that has lost every prefill or every decode backend, the
/// remaining backends serve colocated requests. A dead or draining backend is never chosen, a suspect
/// only if no other backend is usable.
pub fn place(
    params: &Params,
    now: Moment,
    job: &PrefillRequest,
    fleet: &impl FleetLoads,
) -> RouteDecision {
    let mut choice = CandidateScan::new(params, now, job, fleet, Tier::Healthy).choose();
    for tier in [Tier::Suspects, Tier::All] {
        if !matches!(choice, RouteDecision::Unroutable(_)) {
            break;
        }
        choice = CandidateScan::new(params, now, job, fleet, tier).choose();
    }
    choice
}

/// The backends that a scan considers, in order of preference. A later tier is scanned only if the
/// earlier ones have no route.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tier {
    /// Backends on which the request has not failed, without suspects.
    Healthy,
    /// Backends on which the request has not failed, suspects included.
    Suspects,
    /// All backends.
    All,
}

impl Tier {
    fn skips(self, load: &BackendLoad, failed: bool) -> bool {
        match self {
            Tier::Healthy => load.suspect || failed,
            Tier::Suspects => failed,
            Tier::All => false,
        }
    }
}

/// State of one scan of the pool.
struct CandidateScan<'a, F> {
    params: &'a Params,
    job: &'a PrefillRequest,
    fleet: &'a F,
    tier: Tier,
    now: Moment,
    /// Time until the TTFT deadline.
    time_left: Seconds,
    /// The best backend for the colocated request: a mixed one, a decode backend on which the prefill
    /// delays no stream beyond its TPOT target, or a prefill backend that holds most of the prefix. The
    /// second pass adds the backends against whose role the request may be colocated.
    colocated: Option<Candidate>,
    /// The best decode backend on which the prefill delays streams, but by no more than their slack
    /// (spill). Streams whose hand-off to it ends during the prefill have none, so a spill is used
    /// only if no other route is in time.
    spill: Option<Candidate>,
    /// The backend without prefill capacity whose prefix cache leaves the least prefill work.
    holder: Option<Candidate>,
    /// The decode backend that holds most of the prefix and whose streams lack slack for the rest.
    stalled_holder: Option<Candidate>,
    /// By group: the best backend for the prefill leg.
    prefill: [Option<Candidate>; GROUPS],
    /// By group: the shortest decode step with this request included.
    decode_step: [Seconds; GROUPS],
    /// Bit sets of groups: with an open backend that takes prefills; with one that takes decodes;
    /// with prefill capacity; with decode capacity; with decode capacity on several backends.
    prefill_groups: u64,
    decode_groups: u64,
    prefill_capacity: u64,
    decode_capacity: u64,
    decode_elsewhere: u64,
    /// Number of open backends that take prefills, and of the idle ones among them.
    prefills: u32,
    idle: u32,
    /// Whether a prefill backend has capacity, but the request must be colocated.
    colocation_required: bool,
    /// Whether a backend has prefill capacity for the request in its role. Without a route, the
    /// request then waits for decode capacity.
    startable: bool,
    /// Whether a backend of the tier is usable, open or draining.
    usable: bool,
    /// Whether an open backend serves colocated requests.
    colocates: bool,
}

impl<'a, F: FleetLoads> CandidateScan<'a, F> {
    fn new(
        params: &'a Params,
        now: Moment,
        job: &'a PrefillRequest,
        fleet: &'a F,
        tier: Tier,
    ) -> Self {
        CandidateScan {
            params,
            job,
            fleet,
            tier,
            now,
            time_left: job.ttft_deadline - now,
            colocated: None,
            spill: None,
            holder: None,
            stalled_holder: None,
            prefill: [None; GROUPS],
            decode_step: [Seconds(f64::INFINITY); GROUPS],
            prefill_groups: 0,
            decode_groups: 0,
            prefill_capacity: 0,
            decode_capacity: 0,
            decode_elsewhere: 0,
            prefills: 0,
            idle: 0,
            colocation_required: false,
            startable: false,
            usable: false,
            colocates: false,
        }
    }

    fn choose(mut self) -> RouteDecision {
        let backends = self.fleet.pool(self.job.pool);
        if backends.len() > SAMPLE {
            // A sample would probably miss the few backends that hold the prefix.
            for (holder, _) in self.fleet.holders(self.job).entries() {
                if backends.contains(holder) {
                    self.scan_by_role(*holder);
                }
            }
        }
        for (examined, index) in order(backends.len(), self.job.seed).enumerate() {
            if examined >= SAMPLE && self.has_route() {
                break;
            }
            self.scan_by_role(backends[index]);
        }
        if !self.has_route() && self.may_scan_against_roles() {
            for index in order(backends.len(), self.job.seed) {
                self.scan_against_roles(backends[index]);
            }
        }
        let best = self.best().filter(|choice| !self.waits_for_holder(choice));
        // The prefix cache of a holder saves most of the work of any other route; it is used without
        // slack, too, if there is no other route.
        let work = best.as_ref().and_then(RouteDecision::predicted);
        let saves =
            |holder: &Candidate| work.is_none_or(|work| holder.predicted * HOLDER_SAVES < work);
        if let Some(holder) = self.stalled_holder.filter(saves) {
            return colocated_on(holder);
        }
        best.unwrap_or_else(|| self.no_route(backends.is_empty()))
    }

    /// Returns whether the request waits for a busy backend that holds its prefix instead of taking
    /// the route `choice`. It does if the hit saves most of the prefill work ([`HOLDER_SAVES`]) and
    /// the wait keeps the TTFT deadline. A request that misses the deadline anyway waits at most as
    /// long as the other prefill takes.
    fn waits_for_holder(&self, choice: &RouteDecision) -> bool {
        let (Some(holder), Some(predicted)) = (self.holder, choice.predicted()) else {
            return false;
        };
        let after = holder.hand_off + self.job.targets.slo.tpot;
        holder.predicted * HOLDER_SAVES < predicted
            && holder.ttft + after <= self.time_left.max(predicted)
    }

    fn has_route(&self) -> bool {
        self.colocated.is_some()
            || self.spill.is_some_and(|spill| self.is_in_time(&spill))
            || self.prefill_capacity & self.decode_capacity != 0
    }

    /// Returns whether the first pass has skipped a backend because of its role.
    fn may_scan_against_roles(&self) -> bool {
        self.colocation_required || self.prefill_groups != self.decode_groups
    }

    /// Returns the load of a backend that may receive new work.
    fn open(&mut self, on: BackendId) -> Option<BackendLoad> {
        let load = self.fleet.load(on);
        let skipped = self.tier.skips(&load, self.job.excluded.contains(on));
        self.usable |= load.usable && !skipped;
        (load.is_open() && !skipped).then_some(load)
    }

    fn scan_by_role(&mut self, on: BackendId) {
        let Some(load) = self.open(on) else { return };
        let cached = self.fleet.cached(self.job, on);
        let evaluation =
            Evaluation::new(self.params, self.job, (on, &load), cached, self.time_left);
        let (slot, bit) = slot(load.group);
        self.colocates |= load.colocates;
        let decode_capacity = load.role.takes_decode() && evaluation.has_decode_capacity();
        if load.role.takes_decode() {
            self.decode_groups |= bit;
        }
        if load.role.takes_prefill() {
            self.prefill_groups |= bit;
            self.prefills += 1;
            self.idle += u32::from(load.prefill <= Seconds::ZERO);
        }
        if decode_capacity {
            self.decode_elsewhere |= self.decode_capacity & bit;
            self.decode_capacity |= bit;
            let step = load.step_with(self.job.prompt);
            self.decode_step[slot] = self.decode_step[slot].min(step);
        }
        let may_colocate = decode_capacity
            && load.colocates
            && evaluation.may_colocate_batch(self.must_colocate(&evaluation));
        if !evaluation.has_prefill_capacity() {
            let takes = load.role.takes_prefill() || may_colocate && evaluation.holds_most();
            if cached > Tokens::ZERO && takes {
                let busy = evaluation.prefill();
                if self.holder.is_none_or(|holder| busy.predicted < holder.predicted) {
                    self.holder = Some(busy);
                }
            }
            return;
        }
        self.startable |= load.role.takes_prefill();
        if may_colocate && (load.role == Role::Mixed || evaluation.has_slack()) {
            let spills = load.role != Role::Mixed && evaluation.stalls_streams();
            let best = if spills { &mut self.spill } else { &mut self.colocated };
            evaluation.colocated().compete(best, self.time_left);
        } else if may_colocate && evaluation.holds_most() {
            evaluation.colocated().compete(&mut self.stalled_holder, self.time_left);
        } else if load.role == Role::Prefill && load.colocates && self.must_colocate(&evaluation) {
            self.colocation_required = true;
        } else if load.role == Role::Prefill {
            if load.colocates && evaluation.keeps_decode() {
                evaluation.colocated().compete(&mut self.colocated, self.time_left);
            }
            self.prefill_capacity |= bit;
            evaluation.prefill().compete(&mut self.prefill[slot], self.time_left);
        }
    }

    /// Considers backends for the colocated request against their role: those of a group that has
    /// lost the other role, and prefill backends for requests that must be colocated.
    fn scan_against_roles(&mut self, on: BackendId) {
        let Some(load) = self.open(on) else { return };
        let cached = self.fleet.cached(self.job, on);
        let evaluation =
            Evaluation::new(self.params, self.job, (on, &load), cached, self.time_left);
        let (_, bit) = slot(load.group);
        let one_sided = (self.prefill_groups & self.decode_groups) & bit == 0;
        let colocation_required = load.role == Role::Prefill && self.must_colocate(&evaluation);
        if !load.colocates
            || !evaluation.has_prefill_capacity()
            || !(one_sided || colocation_required)
        {
            return;
        }
        self.startable = true;
        if evaluation.has_decode_capacity() {
            evaluation.colocated().compete(&mut self.colocated, self.time_left);
        }
    }

    fn must_colocate(&self, evaluation: &Evaluation<'_>) -> bool {
        self.job.disaggregation == Disaggregation::Never
            || evaluation.uncached() < self.params.colocate_below
    }

    fn best(&self) -> Option<RouteDecision> {
        let mut disaggregated = None;
        let mut groups = self.prefill_capacity & self.decode_capacity;
        while groups != 0 {
            let slot = groups.trailing_zeros() as usize;
            groups &= groups - 1;
            if let Some(prefill) = self.prefill[slot] {
                let step = self.decode_step[slot];
                with_hand_off(self.job, prefill, step).compete(&mut disaggregated, self.time_left);
            }
        }
        if self.job.is_batch() && !self.leaves_an_idle_prefill() {
            return Some(RouteDecision::Wait(WaitReason::PrefillBusy));
        }
        let in_time = |candidate: &Candidate| self.is_in_time(candidate);
        if ![disaggregated, self.colocated].iter().flatten().any(in_time) {
            if let Some(spill) = self.spill.filter(in_time) {
                return Some(self.spill_route(spill));
            }
            if (disaggregated.is_some() || self.colocated.is_some())
                && self.holds_trunk_reservation()
            {
                return Some(RouteDecision::Wait(WaitReason::PrefillBusy));
            }
        }
        match (disaggregated, self.colocated) {
            (Some(disaggregated), Some(colocated))
                if disaggregated.beats(&colocated, self.time_left) =>
            {
                Some(prefill_on(disaggregated))
            }
            (_, Some(colocated)) => Some(colocated_on(colocated)),
            (disaggregated, None) => disaggregated.map(prefill_on),
        }
    }

    fn is_in_time(&self, candidate: &Candidate) -> bool {
        candidate.ttft <= self.time_left
    }

    /// Trunk reservation: returns whether a request that misses its TTFT target on every backend
    /// leaves the last idle prefill backend to feasible requests.
    fn holds_trunk_reservation(&self) -> bool {
        !self.leaves_an_idle_prefill() && self.trunk_reservation_left() > Seconds::ZERO
    }

    /// Returns whether one of several prefill backends stays idle beside this request. Batch work
    /// always leaves one to interactive requests.
    fn leaves_an_idle_prefill(&self) -> bool {
        self.idle >= self.prefills.min(2)
    }

    /// Returns the remaining duration of the trunk reservation for this request.
    fn trunk_reservation_left(&self) -> Seconds {
        let PrefillRequest { arrived, queue_deadline, .. } = *self.job;
        arrived + (queue_deadline - arrived) * self.params.trunk_reservation_share - self.now
    }

    /// Returns the route of a spill to a decode backend. The decode runs on another backend of the
    /// group if possible: a new stream has no slack, and would prevent the next spill to this one.
    fn spill_route(&self, spill: Candidate) -> RouteDecision {
        let load = self.fleet.load(spill.on);
        let (slot, bit) = slot(load.group);
        let uncached = self.job.prompt - spill.cached;
        let may_disaggregate = self.job.disaggregation == Disaggregation::Allowed
            && uncached >= self.params.colocate_below;
        let may = load.can_hand_off && may_disaggregate;
        let leg = with_hand_off(self.job, spill, self.decode_step[slot]);
        match may && self.decode_elsewhere & bit != 0 && self.is_in_time(&leg) {
            true => prefill_on(spill),
            false => colocated_on(spill),
        }
    }

    fn no_route(&self, empty: bool) -> RouteDecision {
        let open = self.prefill_groups | self.decode_groups != 0;
        if empty {
            RouteDecision::Unroutable(UnroutableReason::EmptyPool)
        } else if !self.usable {
            RouteDecision::Unroutable(UnroutableReason::NoneUsable)
        } else if !open {
            RouteDecision::Unroutable(UnroutableReason::AllDraining)
        } else if !self.colocates && self.prefill_groups & self.decode_groups == 0 {
            RouteDecision::Unroutable(UnroutableReason::Unpaired)
        } else if self.startable {
            RouteDecision::Wait(WaitReason::DecodeBusy)
        } else {
            RouteDecision::Wait(WaitReason::PrefillBusy)
        }
    }
}

fn slot(group: GroupId) -> (usize, u64) {
    let slot = group.index() % GROUPS;
    (slot, 1 << slot)
}

fn prefill_on(Candidate { on, predicted, cached, .. }: Candidate) -> RouteDecision {
    RouteDecision::Prefill { on, predicted, cached }
}

fn colocated_on(Candidate { on, predicted, cached, .. }: Candidate) -> RouteDecision {
    RouteDecision::Colocated { on, predicted, cached }
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
