//! The policy `tidegate`: the scheduler of the live proxy, driven in virtual time. Like the proxy's
//! `dispatch` and `control`, this module turns events into calls of the scheduler and makes no
//! decision of its own.
//!
//! Simplifications: slack is exact instead of up to one plan interval old, engines do not fail, and
//! legs take no time except for the hand-off.

use tidegate_scheduler::LocalU64;
use tidegate_scheduler::dispatch::{
    DispatchOutcome, DispatchQueue, LONGEST_PAUSE, LegReservation, PlaceResult, WaitingDecode,
    try_place,
};
use tidegate_scheduler::gateways::{GatewayReport, ModelArrivals};
use tidegate_scheduler::placement::{
    DecodeRequest, Disaggregation, Excluded, Params as PlacementParams, PrefillRequest,
};
use tidegate_scheduler::planner::{
    ArrivalCounters, ArrivalTotals, GroupDemand, Params as PlannerParams, State, initial, plan,
};
use tidegate_types::{
    BackendId, GroupId, Moment, PoolId, RequestId, Role, RoleCapability, Seconds, Targets, Tokens,
};

use crate::classes::Classes;
use crate::cluster::{Cluster, Router};
use crate::engine::Work;
use crate::fleet_state::FleetState;
use crate::learning::Learning;
use crate::simulate::SimConfig;
use crate::timeline::Timeline;
use crate::trace::Arrival;

/// The parameters that the live proxy reads from its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TidegateParams {
    /// Parameters of placement. SLO and chunk are replaced by those of the fleet.
    pub placement: PlacementParams,
    /// Parameters of the planner. SLO, chunk and, with `switch`, the switch time are replaced.
    pub planner: PlannerParams,
    /// Plan interval while no request is queued. Default 5 ms.
    pub plan_interval: Seconds,
    /// Shortest plan interval while requests are queued. Default 2 ms.
    pub plan_gap: Seconds,
    /// Queue deadline: time after arrival at which a queued request is refused. Default 30 s.
    pub queue_deadline: Seconds,
    /// Hand-off deadline: time after the prefill from which a request takes a decode engine without
    /// capacity too. Default 20 s.
    pub handoff_deadline: Seconds,
    /// Whether requests state their output length as `max_tokens`, as those of `tidegate replay`
    /// do.
    pub tells_output: bool,
    /// Whether engines report the cached tokens of each request, as vLLM does with
    /// `--enable-prompt-tokens-details`. Default true.
    pub reports_cached: bool,
    /// Whether engines publish KV events (vLLM `--kv-events-config`), so that the prefix index
    /// knows their evictions. Default false.
    pub kv_events: bool,
    /// Whether the scheduler knows the service classes of the load. Otherwise it treats each request as
    /// one of the default class. Default true.
    pub knows_classes: bool,
    /// Whether the planner may flip engines.
    pub flips: bool,
    /// Duration of the role switch of `DrainThenCall` engines, which serve no colocated requests.
    /// `None`: roles change instantly.
    pub switch: Option<Seconds>,
    /// Prefill engines at the start; `None`: the planner's initial split.
    pub start: Option<usize>,
    /// Gateways before the fleet. Each places its own requests; the first one plans for all.
    pub gateways: usize,
    /// Interval at which several gateways exchange their loads. Default 50 ms.
    pub exchange: Seconds,
}

impl Default for TidegateParams {
    /// The defaults of tidegate_settings.
    fn default() -> TidegateParams {
        TidegateParams {
            placement: PlacementParams::default(),
            planner: PlannerParams::default(),
            plan_interval: Seconds(0.005),
            plan_gap: Seconds(0.002),
            queue_deadline: Seconds(30.0),
            handoff_deadline: Seconds(20.0),
            tells_output: false,
            reports_cached: true,
            kv_events: false,
            knows_classes: true,
            flips: true,
            switch: None,
            start: None,
            gateways: 1,
            exchange: Seconds(0.05),
        }
    }
}

/// All engines serve one model.
const POOL: PoolId = PoolId(0);

/// Router of the policy `tidegate`.
pub(crate) struct TidegateRouter {
    params: TidegateParams,
    /// The classes that the scheduler knows.
    classes: Classes,
    fleet_state: FleetState,
    arrivals: ArrivalCounters<LocalU64>,
    /// Arrivals at the other gateways.
    others_arrivals: ArrivalCounters<LocalU64>,
    /// The arrivals at the previous plan.
    planned_arrivals: ArrivalTotals,
    learning: Learning,
    queue: DispatchQueue,
    state: State,
    planned_at: Moment,
    /// Time of the earliest scheduled wake-up.
    woken_at: Moment,
    passed_at: Moment,
    flips: u64,
    timeline: Timeline,
}

impl TidegateRouter {
    pub(crate) fn new(config: &SimConfig, mut timeline: Timeline) -> TidegateRouter {
        let mut params = config.tidegate;
        let profile = &config.profile;
        params.placement.slo = config.slo;
        params.placement.chunk = profile.chunk;
        let classes = if params.knows_classes { config.classes } else { Classes::default() };
        params.placement.class_tpot = classes.smallest_tpot();
        params.planner.slo = config.slo;
        params.planner.chunk = config.profile.chunk;
        params.planner.switch = params.switch.unwrap_or(params.planner.switch);
        let capability = match params.switch {
            Some(_) => RoleCapability::DrainThenCall,
            None => RoleCapability::Instant,
        };
        let assumed = config.assumed_fleet();
        let mut fleet_state = FleetState::new(&assumed, capability);
        if config.prefix_caching {
            fleet_state = fleet_state.with_prefix_index(params.kv_events);
        }
        let roles = match params.start {
            Some(prefills) => (0..config.engines)
                .map(|engine| if engine < prefills { Role::Prefill } else { Role::Decode })
                .collect(),
            None => initial(&fleet_state.observation(Vec::new())),
        };
        timeline.pools(Moment::START, prefills_of(&roles));
        fleet_state.begin_with(roles);
        TidegateRouter {
            queue: DispatchQueue::with_limit(params.placement.queue_max),
            params,
            classes,
            fleet_state,
            arrivals: ArrivalCounters::default(),
            others_arrivals: ArrivalCounters::default(),
            planned_arrivals: ArrivalTotals::default(),
            learning: Learning::new(&assumed, profile.chunk, params.reports_cached),
            state: State::default(),
            planned_at: Moment::START,
            woken_at: Moment::NEVER,
            passed_at: Moment::START,
            flips: 0,
            timeline,
        }
    }

    /// Returns this gateway's loads, by engine, and its arrivals since `before`, which becomes those until
    /// now.
    pub(crate) fn report(&self, before: &mut ArrivalTotals, now: Moment) -> GatewayReport {
        let totals = self.arrivals.totals();
        let arrived = ModelArrivals::between("", None, before, &totals);
        *before = totals;
        let load = |on: BackendId| (on.0.to_string(), self.fleet_state.load(on, now));
        let loads = self.fleet_state.engines().map(load);
        GatewayReport { loads: loads.collect(), arrivals: arrived.into_iter().collect() }
    }

    /// Counts the loads and arrivals of the other gateways, which may have released capacity.
    pub(crate) fn count_others(&mut self, cluster: &mut Cluster<'_>, others: &GatewayReport) {
        let now = cluster.now();
        for on in self.fleet_state.engines() {
            self.fleet_state.set_others(on, others.loads.get(&on.0.to_string()), now);
        }
        for arrived in &others.arrivals {
            self.others_arrivals.count_all(&arrived.totals());
        }
        self.pass(cluster);
    }

    /// Returns the roles in force.
    pub(crate) fn roles(&self) -> &[Role] {
        self.fleet_state.roles()
    }

    /// Takes the leader's roles.
    pub(crate) fn follow(&mut self, cluster: &mut Cluster<'_>, roles: Vec<Role>) {
        if self.fleet_state.set_roles(roles) > 0 {
            self.pass(cluster);
        }
    }

    /// Returns the recorded timeline.
    pub(crate) fn into_timeline(self) -> Timeline {
        self.timeline
    }

    fn job(&self, cluster: &Cluster<'_>, request: usize) -> PrefillRequest {
        let arrival = &cluster.trace().arrivals[request];
        let (id, now) = (id_of(request), cluster.now());
        let targets = self.targets(arrival);
        // As in the proxy, whose batch classes have no queue deadline unless one is set.
        let queue_deadline = match targets.is_batch() {
            true => Moment::NEVER,
            false => now + self.params.queue_deadline,
        };
        PrefillRequest {
            id,
            pool: POOL,
            prompt: arrival.prompt,
            expected_output: self
                .learning
                .output()
                .expect(self.limit(arrival.output), arrival.prompt),
            arrived: now,
            targets,
            ttft_deadline: now + targets.slo.ttft,
            queue_deadline,
            disaggregation: Disaggregation::Allowed,
            seed: id.spread(),
            excluded: Excluded::default(),
        }
    }

    /// Returns the targets of a request, as the scheduler knows them.
    fn targets(&self, arrival: &Arrival) -> Targets {
        self.classes.targets(arrival.class, self.params.placement.slo)
    }

    /// Counts a request as demand: its predicted prefill work, and its targets where they differ from the
    /// default ones. Batch work uses the remaining capacity and is not counted.
    fn count(&self, work: Seconds, job: &PrefillRequest) {
        if job.is_batch() {
            return;
        }
        self.arrivals.count(work, job.prompt, job.expected_output);
        let default = &self.params.placement.slo;
        if job.targets.slo != *default {
            self.arrivals.count_targets(&job.targets.slo, default, job.expected_output);
        }
    }

    /// Returns the number of queued requests that have precedence over `job`.
    fn waiting_before(&self, job: &PrefillRequest) -> usize {
        let batch = if job.is_batch() { self.queue.waiting_batch(POOL) } else { 0 };
        self.queue.waiting(POOL) + batch
    }

    fn apply_kv_events(&self, cluster: &mut Cluster<'_>) {
        if self.params.kv_events {
            for (engine, changes) in cluster.take_cache_changes() {
                self.fleet_state.apply_kv_events(BackendId(engine as u16), &changes);
            }
        }
    }

    fn limit(&self, output: Tokens) -> Option<Tokens> {
        self.params.tells_output.then_some(output)
    }

    /// Places the queued requests for which an engine has capacity.
    fn pass(&mut self, cluster: &mut Cluster<'_>) {
        let now = cluster.now();
        self.passed_at = now;
        if self.queue.is_empty() {
            return;
        }
        let (mut placed, mut decoding, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        let view = self.fleet_state.view(now);
        self.queue.pass(&self.params.placement, now, &view, |outcome| match outcome {
            DispatchOutcome::Reserved(job, leg) => placed.push((job.id, leg)),
            DispatchOutcome::Decoding(leg, on, stream) => {
                decoding.push((leg.request.id, leg.request.from, on, stream));
            }
            DispatchOutcome::Refused(id, _) => refused.push(id),
        });
        for (id, from, on, stream) in decoding {
            let arrival = &cluster.trace().arrivals[request_of(id)];
            let tpot = self.targets(arrival).slo.tpot;
            self.fleet_state.decoding(request_of(id), stream, tpot);
            let lacks = self.fleet_state.lacks(on, &arrival.blocks, arrival.prompt);
            self.learning.decode_sent(request_of(id), on, lacks, &self.fleet_state, now);
            self.fleet_state.sent(id, on, &arrival.blocks, arrival.prompt);
            cluster.hand_off(request_of(id), from.index(), on.index());
        }
        for (id, leg) in placed {
            self.start(cluster, request_of(id), leg);
        }
        for id in refused {
            cluster.refuse(request_of(id));
        }
        self.timeline.waiting(now, self.queue.waiting(POOL) + self.queue.waiting_decodes());
        // As in the proxy, waiting batch work wakes no planner.
        if self.queue.has_interactive() {
            let earliest = self.planned_at + self.params.plan_gap;
            self.wake(cluster, earliest.max(now));
        }
    }

    /// Sends a reserved first leg.
    fn start(&mut self, cluster: &mut Cluster<'_>, request: usize, leg: LegReservation<LocalU64>) {
        let arrival = &cluster.trace().arrivals[request];
        let on = leg.on;
        let work = if leg.stream.is_some() { Work::Colocated } else { Work::PrefillOnly };
        self.learning.prefill_sent(request, on, leg.predicted, cluster.now());
        let tpot = self.targets(arrival).slo.tpot;
        self.fleet_state.placed(request, leg, tpot);
        self.fleet_state.sent(id_of(request), on, &arrival.blocks, arrival.prompt);
        cluster.admit(request, on.index(), work);
    }

    fn wake(&mut self, cluster: &mut Cluster<'_>, at: Moment) {
        if at < self.woken_at {
            self.woken_at = at;
            cluster.wake_at(at);
        }
    }

    fn plan(&mut self, cluster: &mut Cluster<'_>) {
        let now = cluster.now();
        self.planned_at = now;
        let demand = self.demand();
        let observation = self.fleet_state.observation(vec![demand]);
        let (decision, state) = plan(&self.params.planner, now, &observation, &self.state);
        self.state = state;
        if let Some(roles) = decision.roles.filter(|_| self.params.flips) {
            self.timeline.pools(now, prefills_of(&roles));
            let changed = self.fleet_state.set_roles(roles);
            self.flips += changed;
            if changed > 0 {
                self.pass(cluster);
            }
        }
        self.switch(cluster);
    }

    /// Returns the demand since the previous plan.
    fn demand(&mut self) -> GroupDemand {
        let now = self.arrivals.totals() + self.others_arrivals.totals();
        let before = std::mem::replace(&mut self.planned_arrivals, now);
        let mut demand = GroupDemand::none(GroupId(0));
        demand.add(&before, &now, 1.0);
        demand
    }

    /// Starts the switch of drained engines and completes the switches that are due.
    fn switch(&mut self, cluster: &mut Cluster<'_>) {
        let (Some(takes), now) = (self.params.switch, cluster.now()) else { return };
        let idle = |engine: usize| cluster.engine(engine).is_idle();
        if self.fleet_state.switch(now, takes, idle) {
            self.pass(cluster);
        }
    }
}

impl Router for TidegateRouter {
    fn flips(&self) -> u64 {
        self.flips
    }

    fn arrived(&mut self, cluster: &mut Cluster<'_>, request: usize) {
        if self.woken_at == Moment::NEVER {
            self.wake(cluster, cluster.now());
        }
        self.apply_kv_events(cluster);
        let job = self.job(cluster, request);
        let blocks = &cluster.trace().arrivals[request].blocks;
        let cached = self.fleet_state.look_up(job.id, blocks).min(job.prompt - Tokens(1));
        let work = self.fleet_state.mean_prefill().predict(job.prompt - cached, cached);
        self.count(work, &job);
        // Queued requests have precedence.
        if self.waiting_before(&job) == 0 {
            let now = cluster.now();
            match try_place(&self.params.placement, now, &job, &self.fleet_state.view(now)) {
                PlaceResult::Reserved(leg) => return self.start(cluster, request, leg),
                PlaceResult::Unroutable => return cluster.refuse(request),
                PlaceResult::Wait => {}
            }
        }
        match self.queue.push(job) {
            Ok(()) => self.pass(cluster),
            Err(_) => cluster.refuse(request),
        }
    }

    fn prefilled(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.apply_kv_events(cluster);
        self.fleet_state.settle(request);
        let arrival = &cluster.trace().arrivals[request];
        self.learning.prefilled(request, arrival.prompt, cluster.hit(request), cluster.now());
        let (from, id) = (BackendId(engine as u16), id_of(request));
        let mut excluded = Excluded::default();
        // As in the proxy: an engine does not read its own blocks.
        excluded.insert(from);
        let request = DecodeRequest {
            id,
            pool: POOL,
            from,
            targets: self.targets(arrival),
            kv: arrival.prompt,
            expected_output: self
                .learning
                .output()
                .expect(self.limit(arrival.output), arrival.prompt),
            seed: id.spread(),
            excluded,
        };
        let arrived = cluster.now();
        let deadline = arrived + self.params.handoff_deadline;
        self.queue.push_decode(WaitingDecode { request, arrived, deadline });
        self.pass(cluster);
    }

    fn began(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.fleet_state.settle(request);
        let (now, steps) = (cluster.now(), cluster.engine(engine).steps());
        self.fleet_state.began(request, engine, now, steps);
        self.learning.began(request, cluster.trace().arrivals[request].prompt, now);
        self.pass(cluster);
    }

    fn ended(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        let arrival = &cluster.trace().arrivals[request];
        let steps = cluster.engine(engine).steps();
        self.fleet_state.ended(request, engine, steps);
        let (limit, cached) = (self.limit(arrival.output), cluster.hit(request));
        self.learning.ended(request, limit, arrival, cached, cluster.now());
        self.pass(cluster);
    }

    fn stepped(&mut self, cluster: &mut Cluster<'_>, engine: usize) {
        self.fleet_state.stepped(engine, cluster.engine(engine).steps());
    }

    fn woken(&mut self, cluster: &mut Cluster<'_>) {
        let now = cluster.now();
        if now < self.woken_at {
            return;
        }
        self.woken_at = Moment::NEVER;
        self.learning.settle(&mut self.fleet_state, now);
        self.plan(cluster);
        self.learning.publish(&mut self.fleet_state, now);
        if !self.queue.is_empty() && now - self.passed_at >= LONGEST_PAUSE {
            self.pass(cluster);
        }
        self.wake(cluster, now + self.params.plan_interval);
    }
}

fn prefills_of(roles: &[Role]) -> usize {
    roles.iter().filter(|role| **role == Role::Prefill).count()
}

fn id_of(request: usize) -> RequestId {
    RequestId(request as u64)
}

fn request_of(id: RequestId) -> usize {
    id.0 as usize
}
