//! The control loop, the only writer of the routing table. It collects the observations of
//! requests, calls the pure planner, publishes its decision and records the reasons in the journal.
//! Requests do not wait for it: if it stops, the last table stays in force.

mod catalog;
pub mod compatibility;
mod gateways;
mod membership;
mod observe;
pub mod operator;
pub mod operator_backends;
pub mod operator_roles;
mod pace;
mod pd_role_switch;
pub mod pins;
mod revise;
mod streams;
mod switch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tidegate_scheduler::learn::{CostRegressions, PUBLISH_EVERY, Priors};
use tidegate_scheduler::planner::{EnginesWanted, Params, Reason, State, plan};
use tidegate_scheduler::tuning::PAUSE_MAX;
use tidegate_types::{
    BackendId, Flip, GroupId, Moment, Plan, PlanNumber, Role, RoleCapability, Seconds,
};
use tokio::sync::mpsc;

use crate::backends::fleet::RoutingTable;
use crate::backends::probe::ProbeReport;
use crate::dispatch::context::Proxy;
use crate::runtime::clock::Clock;
use crate::telemetry::control_events::ControlEvent;
use crate::telemetry::journal::{JournalEntry, Numbers};
use crate::telemetry::recording::Recording;
use compatibility::EngineCompatibility;
use observe::DemandReader;
use operator_roles::OperatorRoles;
use pace::UsualDuration;
use pins::Pins;

pub use catalog::{Catalog, ConfiguredModels, KnownModel};
pub use gateways::Gateways;
use gateways::Mandate;
pub use gateways::{Leadership, NamedRoles};
pub use membership::{Desired, FleetUpdate, Membership};
pub use operator::{Hold, RoleCommand};
pub use pace::Pace;
pub use revise::Revision;

/// Capacity of the channel of finished role switches; a full channel makes the switch's task wait.
const SWITCHES_MAX: usize = 16;
/// Interval at which metric histograms are drained into their buckets.
const UPKEEP_EVERY: Seconds = Seconds(5.0);

/// Channels into the control loop.
pub struct Inboxes {
    /// Observations of finished legs and requests.
    pub control_events: mpsc::Receiver<ControlEvent>,
    /// Results of probes.
    pub found: mpsc::Receiver<ProbeReport>,
    /// Commands of operators.
    pub commands: mpsc::Receiver<RoleCommand>,
    /// Settings that were read again.
    pub revisions: mpsc::Receiver<Revision>,
    /// Desired backends of the sources.
    pub fleet: mpsc::Receiver<FleetUpdate>,
}

/// The control loop's private state.
pub struct Control {
    proxy: Arc<Proxy>,
    inboxes: Inboxes,
    pace: Pace,
    /// Whether the planner may change roles; otherwise only operators do.
    automatic: bool,
    params: Params,
    state: State,
    wanted: EnginesWanted,
    pins: Pins,
    regressions: CostRegressions,
    catalog: Catalog,
    recording: Recording,
    compatibility: EngineCompatibility,
    operator_roles: OperatorRoles,
    membership: Membership,
    /// The leader election among several gateways; `None`: this gateway always leads.
    gateways: Option<Gateways>,
    demand: DemandReader,
    /// Channel on which switches performed by engines report their result.
    switches: (mpsc::Sender<switch::FinishedSwitch>, mpsc::Receiver<switch::FinishedSwitch>),
    switching: BTreeMap<BackendId, Role>,
    planned_at: Moment,
    plan_takes: UsualDuration,
    watched_at: Moment,
    watch_takes: UsualDuration,
    published_at: Moment,
    upkeep_at: Moment,
}

impl Control {
    /// A control loop for a fleet whose first table has been published.
    #[allow(clippy::too_many_arguments, reason = "one value a collaborator, called once")]
    pub fn new(
        proxy: Arc<Proxy>,
        inboxes: Inboxes,
        pace: Pace,
        automatic: bool,
        params: Params,
        pins: Pins,
        priors: Vec<Priors>,
        catalog: Catalog,
        recording: Recording,
        compatibility: EngineCompatibility,
        operator_roles: OperatorRoles,
        membership: Membership,
        gateways: Option<Gateways>,
    ) -> Control {
        let estimates = (**proxy.fleet.estimates()).clone();
        let mut regressions = CostRegressions::new(priors, estimates, params.chunk);
        regressions.regroup(proxy.fleet.table().entries.iter().map(|entry| entry.group));
        Control {
            regressions,
            catalog,
            recording,
            compatibility,
            operator_roles,
            membership,
            gateways,
            demand: DemandReader::default(),
            proxy,
            inboxes,
            pace,
            automatic,
            params,
            state: State::default(),
            wanted: EnginesWanted::default(),
            pins,
            switches: mpsc::channel(SWITCHES_MAX),
            switching: BTreeMap::new(),
            planned_at: Moment::START,
            plan_takes: UsualDuration::UNKNOWN,
            watched_at: Moment::START,
            watch_takes: UsualDuration::UNKNOWN,
            published_at: Moment::START,
            upkeep_at: Moment::START,
        }
    }

    /// Runs until the proxy stops.
    pub async fn run(mut self, mut stop: pingora_core::server::ShutdownWatch) {
        self.note_holds();
        let clock: Clock = self.proxy.clock;
        let proxy = Arc::clone(&self.proxy);
        loop {
            let rest = self.plan_takes.pause();
            let tick = clock.instant(self.planned_at + self.interval().max(rest));
            tokio::select! {
                biased;
                _ = stop.changed() => return self.recording.flush(),
                Some(command) = self.inboxes.commands.recv() => self.execute(command),
                Some(revision) = self.inboxes.revisions.recv() => self.revise(revision),
                Some(update) = self.inboxes.fleet.recv() => self.change_fleet(update),
                Some(ended) = self.switches.1.recv() => self.switched(ended),
                Some(found) = self.inboxes.found.recv() => self.find(found),
                () = Gateways::changed(&mut self.gateways) => {}
                () = proxy.replan.notified() => {
                    let gap = clock.instant(self.planned_at + self.pace.gap.max(rest));
                    tokio::time::sleep_until(gap).await;
                }
                () = tokio::time::sleep_until(tick) => {}
            }
            self.step(clock.now());
        }
    }

    /// Interval between plans. If no role can change (planner off, or one backend), the loop only
    /// wakes to check streams. A demand notification still causes an immediate plan.
    fn interval(&self) -> Seconds {
        let movable = self.automatic && self.leads() && self.proxy.fleet.backends().len() > 1;
        if movable { self.pace.interval } else { self.pace.interval.max(PAUSE_MAX) }
    }

    fn step(&mut self, now: Moment) {
        self.apply_events();
        self.release_expired(now);
        self.release_drained(now);
        self.plan(now);
        self.share_roles();
        if now - self.watched_at >= self.watch_takes.pause() {
            let began = self.proxy.clock.now();
            streams::watch(&self.proxy.fleet, began);
            let backends = self.proxy.fleet.backends();
            let accounts = backends.iter().map(|b| (b.account.balance(), b.account.others()));
            self.regressions.sample_decodes(accounts, began);
            self.watched_at = now;
            self.watch_takes.took(self.proxy.clock.now() - began);
            // A finished engine step wakes the dispatcher before all of its tokens are counted. The
            // slack computed here includes them and can free capacity.
            self.proxy.queue.signal().capacity_released();
        }
        if now - self.published_at >= PUBLISH_EVERY {
            self.published_at = now;
            self.publish_costs();
            self.publish_outlook();
            self.recording.flush();
        }
        if now - self.upkeep_at >= UPKEEP_EVERY {
            self.upkeep_at = now;
            self.proxy.metrics.upkeep();
            self.retry_failed(now);
        }
    }

    /// Takes the observations that are queued.
    fn apply_events(&mut self) {
        let now = self.proxy.clock.now();
        let mut any = false;
        while let Ok(event) = self.inboxes.control_events.try_recv() {
            if let ControlEvent::Sample(sample) = event {
                self.regressions.observe(sample, now);
                any = true;
            }
        }
        self.regressions.end_steps(now);
        if any {
            for backend in self.proxy.fleet.backends().iter() {
                backend.set_hit_share(self.regressions.hit_share(backend.id));
            }
        }
    }

    fn plan(&mut self, now: Moment) {
        let table = self.proxy.fleet.table();
        let arrival = self.proxy.reaction.seen();
        let observation = observe::fleet(
            &self.proxy.fleet,
            &table,
            &self.pins,
            &self.switching,
            &mut self.demand,
        );
        let began = self.proxy.clock.now();
        let (decision, state) = plan(&self.params, now, &observation, &self.state);
        self.proxy.metrics.planned(self.proxy.clock.now() - began);
        self.recording.planned(now, &observation, &decision);
        self.state = state;
        self.wanted.follow(&self.params, now, &observation);
        self.planned_at = now;
        self.plan_takes.took(self.proxy.clock.now() - now);
        if let Some(roles) = decision.roles.filter(|_| self.automatic && self.leads()) {
            self.publish_roles(roles, &decision.reasons, arrival, now);
        }
    }

    /// Publishes planned roles. `arrival`: the first arrival that the previous plan had not seen.
    fn publish_roles(
        &mut self,
        mut roles: Vec<Role>,
        reasons: &[Reason],
        arrival: Option<Moment>,
        now: Moment,
    ) {
        self.begin_switches(&mut roles, reasons, now);
        let table = self.proxy.fleet.table();
        let plan = table.plan.next(roles);
        let flips = plan.flips_since(&table.plan);
        if flips.is_empty() {
            return;
        }
        self.publish(RoutingTable { plan, ..(**table).clone() });
        self.publish_outlook();
        if let Some(arrival) = arrival.filter(|_| !reasons.is_empty()) {
            let took = self.proxy.reaction.published(arrival, self.proxy.clock.now());
            self.proxy.metrics.demand_planned(took);
        }
        let number = self.proxy.fleet.table().plan.number();
        for flip in flips {
            let reason = reasons.iter().find(|reason| reason.backend == flip.backend);
            let cause = reason.map_or("planner", |reason| reason.cause.as_str());
            let numbers = reason.map(|reason| reason.numbers.iter().copied().collect());
            self.record_flip(number, flip, (cause, "applied"), numbers.unwrap_or_default(), now);
        }
    }

    /// Starts the switches of engines that change their role themselves; in `roles` they become
    /// `Draining`.
    fn begin_switches(&mut self, roles: &mut [Role], reasons: &[Reason], now: Moment) {
        for reason in reasons {
            let id = reason.backend;
            if self.calls_for(id, reason.from, reason.to) {
                let flip = Flip { backend: id, from: reason.from, to: reason.to };
                let numbers = reason.numbers.iter().copied().collect();
                self.begin_switch(flip, reason.cause.as_str(), numbers, now);
                roles[id.index()] = Role::Draining;
            }
        }
    }

    /// Whether the engine itself must perform this role change.
    fn calls_for(&self, backend: BackendId, from: Role, to: Role) -> bool {
        let calls = self.proxy.fleet.backend(backend).capability == RoleCapability::DrainThenCall;
        calls && to != from && to != Role::Draining
    }

    fn note(&self, entry: JournalEntry) {
        let JournalEntry { backend, from, to, cause, reason, .. } = &entry;
        tracing::info!(plan = %entry.plan, %backend, %from, %to, cause, reason, "flip");
        #[cfg(feature = "otlp")]
        if let Some(spans) = &self.proxy.spans {
            spans.flipped(&entry);
        }
        self.proxy.journal.write(entry);
    }

    /// Publishes `table`. The roles of its entries are set from its plan, and the regressions are
    /// regrouped.
    fn publish(&mut self, mut table: RoutingTable) {
        self.regressions.regroup(table.entries.iter().map(|entry| entry.group));
        for (slot, entry) in table.entries.iter_mut().enumerate() {
            entry.role = table.plan.role(BackendId(slot as u16));
        }
        self.proxy.fleet.publish(table);
        self.proxy.queue.signal().capacity_released();
    }

    fn publish_outlook(&self) {
        let outlook = self.state.outlook(&self.params.slo, &self.wanted);
        // Scalers sum over the gateways; with an exchange of loads each sees the demand of all.
        let counts = self.leads() || self.proxy.other_gateways.load(Relaxed) == 0;
        let wanted = outlook.iter().filter_map(|group| Some((group.group, group.engines_wanted?)));
        let wanted = wanted.map(|(group, engines)| (group, if counts { engines } else { 0 }));
        self.proxy.metrics.engines_wanted(wanted);
        self.proxy.outlook.store(Arc::new(outlook));
    }

    fn publish_costs(&mut self) {
        let table = self.proxy.fleet.table();
        let mut next = (**table).clone();
        let groups: Vec<GroupId> = next.entries.iter().map(|entry| entry.group).collect();
        let costs = self.regressions.costs(&groups);
        for (entry, costs) in next.entries.iter_mut().zip(costs) {
            (entry.prefill, entry.decode) = costs;
            entry.transfer = self.regressions.transfer(entry.group);
        }
        next.set_mean_costs();
        self.publish(next);
        self.proxy.fleet.publish_estimates(self.regressions.estimates().clone());
    }

    fn find(&mut self, found: ProbeReport) {
        let (backend, cards, answer, applied) = match found {
            ProbeReport::HealthChanged => return,
            ProbeReport::Facts { backend, .. } | ProbeReport::Models { backend, .. }
                if self.proxy.fleet.backend(backend).is_leaving() =>
            {
                return;
            }
            ProbeReport::Models { backend, cards, answer, applied } => {
                (backend, cards, answer, applied)
            }
            ProbeReport::Facts { backend, facts, cards, answer, applied } => {
                let new = self.compatibility.store_facts(backend, facts);
                if self.adopt(backend) || new {
                    self.check_compatibility();
                }
                (backend, cards, answer, applied)
            }
        };
        if !cards.is_empty() {
            self.proxy.signals.serves(backend, &cards);
            if self.catalog.update(backend, cards, answer) {
                self.publish_pools();
            }
        }
        drop(applied);
    }

    /// Judges compatibility again and publishes the resulting groups.
    fn check_compatibility(&mut self) {
        let mut next = (**self.proxy.fleet.table()).clone();
        self.compatibility.apply(&self.proxy.fleet.backends(), &mut next);
        self.publish(next);
    }

    /// Adopts a reported role that differs from the plan: a restarted SGLang engine runs in its
    /// launch mode. Returns whether the role changed.
    fn adopt(&mut self, id: BackendId) -> bool {
        let from = self.proxy.fleet.table().plan.role(id);
        let switches = self.proxy.fleet.backend(id).capability == RoleCapability::DrainThenCall;
        let Some(to) = self.compatibility.reported_role(id).filter(|reported| *reported != from)
        else {
            return false;
        };
        if !switches || from == Role::Draining || self.switching.contains_key(&id) {
            return false;
        }
        self.pins.follow(id, to);
        let now = self.proxy.clock.now();
        self.apply(Flip { backend: id, from, to }, "engine", "adopted", Numbers::new(), now);
        true
    }

    /// Publishes one flip and records it in the journal.
    fn apply(
        &mut self,
        flip: Flip,
        cause: &'static str,
        result: &'static str,
        numbers: Numbers,
        now: Moment,
    ) -> Plan {
        let Flip { backend, to, .. } = flip;
        let table = Arc::clone(&self.proxy.fleet.table());
        let mut roles = table.plan.roles().to_vec();
        roles[backend.index()] = to;
        let plan = table.plan.next(roles);
        self.publish(RoutingTable { plan: plan.clone(), ..(*table).clone() });
        self.state.flipped(backend);
        self.recording.flipped(now, backend);
        self.record_flip(plan.number(), flip, (cause, result), numbers, now);
        plan
    }

    /// Writes a flip of the plan `number` to the journal, and counts it.
    fn record_flip(
        &self,
        number: PlanNumber,
        flip: Flip,
        (cause, result): (&'static str, &'static str),
        numbers: Numbers,
        now: Moment,
    ) {
        let name = self.proxy.fleet.backend(flip.backend).name.to_string();
        let wall = self.proxy.clock.wall(now);
        self.note(JournalEntry::new(number, wall, name, flip, cause, result, numbers));
        self.proxy.metrics.flipped(&flip, cause, result);
    }

    /// Starts a role switch by the engine, which receives no new work until the switch has ended.
    fn begin_switch(
        &mut self,
        flip: Flip,
        cause: &'static str,
        numbers: Numbers,
        now: Moment,
    ) -> Plan {
        let Flip { backend: id, from, to } = flip;
        let backend = Arc::clone(&self.proxy.fleet.backend(id));
        self.switching.insert(id, to);
        self.pins.follow(id, Role::Draining);
        let drains = Flip { to: Role::Draining, ..flip };
        let plan = self.apply(drains, cause, "draining", numbers, now);
        let table = self.proxy.fleet.table();
        let backends = self.proxy.fleet.backends();
        let peers = backends.iter().filter(|peer| {
            let group = table.entry(peer.id).group;
            group == table.entry(id).group && table.plan.role(peer.id) == Role::Decode
        });
        let peers = peers.cloned().collect();
        let results = self.switches.0.clone();
        let mandate = Mandate::of(&self.gateways);
        tokio::spawn(async move {
            let end = switch::run(backend, peers, to, mandate).await;
            // The receiver is dropped only when the process stops.
            results.send(switch::FinishedSwitch { backend: id, from, to, cause, end }).await.ok();
        });
        plan
    }

    /// Finishes a role switch: the engine gets its new or old role, or stays `Draining` if it is
    /// unusable.
    fn switched(&mut self, ended: switch::FinishedSwitch) {
        let switch::FinishedSwitch { backend, from, to, cause, end } = ended;
        let (role, result) = match end {
            switch::SwitchResult::Switched => (to, "switched"),
            switch::SwitchResult::Restored => (from, "restored"),
            switch::SwitchResult::Broken => (Role::Draining, "quarantined"),
        };
        self.switching.remove(&backend);
        if self.proxy.fleet.backend(backend).is_leaving() {
            return;
        }
        self.pins.follow(backend, role);
        if role != Role::Draining {
            self.keep(backend, role);
        }
        let flip = Flip { backend, from: Role::Draining, to: role };
        if end == switch::SwitchResult::Switched {
            self.verified(backend, role);
        }
        self.apply(flip, cause, result, Numbers::new(), self.proxy.clock.now());
        self.check_compatibility();
    }
}
