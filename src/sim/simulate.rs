//! Simulation of a policy on a fleet over a trace, as run by `tidegate simulate`.

use tidegate_types::{ClassId, Moment, Seconds, Slo, Targets};

use crate::bound::bound;
use crate::classes::{ClassReport, Classes};
use crate::cluster::{Cluster, Router};
use crate::disturbance::Disturbance;
use crate::gaps::GapHistogram;
use crate::gateways_policy::GatewaysRouter;
use crate::periodic_policy::PeriodicRouter;
use crate::policy::Policy;
use crate::profile::Profile;
use crate::report::{Outcome, Report};
use crate::rivals;
use crate::static_policy::StaticRouter;
use crate::tidegate_policy::{TidegateParams, TidegateRouter};
use crate::timeline::Timeline;
use crate::trace::Trace;

/// Bins of a run's timeline.
const TIMELINE_BINS: usize = 360;

/// Fleet and targets of a simulation.
#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    /// Engines in the fleet.
    pub engines: usize,
    /// Profile of the engines.
    pub profile: Profile,
    /// Profile of the second half of the engines in a mixed fleet (same model, other hardware);
    /// `None`: all engines are equal.
    pub second: Option<Profile>,
    /// Targets of the default class.
    pub slo: Slo,
    /// The other service classes. Policies but `tidegate` do not know them.
    pub classes: Classes,
    /// Whether engines cache and reuse the KV of shared prompt prefixes.
    pub prefix_caching: bool,
    /// Deviations of the engines from the model.
    pub disturbance: Disturbance,
    /// Time allowed after the last arrival for requests to end.
    pub drain: Seconds,
    /// Parameters of the policy `tidegate`.
    pub tidegate: TidegateParams,
}

/// Result of one simulation.
#[derive(Clone, Debug)]
pub struct Run {
    /// Aggregate figures.
    pub report: Report,
    /// Outcome of each request, in trace order.
    pub outcomes: Vec<Outcome>,
    /// Distribution of the gaps between tokens.
    pub gaps: GapHistogram,
    /// Number of prefill engines of the split, for policies with a fixed one.
    pub split: Option<usize>,
    /// Pools and queue over time; empty except for the policy `tidegate`.
    pub timeline: Timeline,
}

impl Default for SimConfig {
    fn default() -> SimConfig {
        SimConfig {
            engines: 8,
            profile: Profile::default(),
            second: None,
            slo: Slo::default(),
            classes: Classes::default(),
            prefix_caching: false,
            disturbance: Disturbance::default(),
            // An overloaded fleet needs up to half an hour for its backlog, and the longest answer
            // minutes.
            drain: Seconds(3600.0),
            tidegate: TidegateParams::default(),
        }
    }
}

impl SimConfig {
    /// Returns each engine's true profile.
    pub fn fleet(&self) -> Vec<Profile> {
        let half = self.engines.div_ceil(2);
        let of = |engine| self.second.filter(|_| engine >= half).unwrap_or(self.profile);
        (0..self.engines).map(of).collect()
    }

    /// Returns the profile of each engine that policies assume.
    pub fn assumed_fleet(&self) -> Vec<Profile> {
        self.fleet().iter().map(|profile| self.disturbance.assumed(profile)).collect()
    }

    /// Returns the targets of a request of this class.
    pub fn targets(&self, class: ClassId) -> Targets {
        self.classes.targets(class, self.slo)
    }

    /// Returns a profile with the best constant of each kind in the fleet: an upper bound for its
    /// engines.
    fn best(&self) -> Profile {
        let (a, b) = (self.profile, self.second.unwrap_or(self.profile));
        Profile {
            t_base: a.t_base.min(b.t_base),
            t_tok: a.t_tok.min(b.t_tok),
            t_att: a.t_att.min(b.t_att),
            chunk: a.chunk.max(b.chunk),
            ..a
        }
    }
}

/// Runs `policy` over `trace`, whose times are already scaled to `rate`.
///
/// ```
/// use tidegate_sim::{Policy, SimConfig, Trace, simulate};
/// use tidegate_types::Seconds;
///
/// // 2 requests/s for 10 s: 5 s of long prompts, then 5 s of long answers.
/// let trace = Trace::bursts(7, Seconds(10.0), 2.0, Seconds(5.0));
/// let run = simulate(&trace, 1.0, Policy::Tidegate, &SimConfig::default());
/// assert_eq!(run.outcomes.len(), trace.arrivals.len());
/// assert!(run.outcomes.iter().all(|outcome| outcome.ttft.is_some()));
/// ```
pub fn simulate(trace: &Trace, rate: f64, policy: Policy, config: &SimConfig) -> Run {
    let engines = config.engines;
    let cell = PolicyRun { trace, rate, policy, config };
    match policy {
        Policy::Bound => bound_run(trace, rate, config),
        Policy::Tidegate => tidegate(&cell),
        Policy::Aggregated => cell.run(&mut StaticRouter::new(None, engines)),
        Policy::Static(prefills) => {
            let run = cell.run(&mut StaticRouter::new(Some(prefills), engines));
            Run { split: Some(prefills), ..run }
        }
        Policy::BestStatic => best_static(&cell),
        Policy::Interval { every, restart } => {
            let (every, restart) = (millis(every), millis(restart));
            cell.run(&mut PeriodicRouter::new(every, restart, config.slo.tpot, engines))
        }
        Policy::Conditional(prefills) => cell.rival(rivals::Conditional(prefills)),
        Policy::DynamoKv => cell.rival(rivals::Aggregated(rivals::RoutingRule::DynamoKv)),
        Policy::Sticky => cell.rival(rivals::Aggregated(rivals::RoutingRule::Sticky)),
        Policy::CacheAware => cell.rival(rivals::Aggregated(rivals::RoutingRule::CacheAware)),
        Policy::Llumnix { migrates } => cell.rival(rivals::Llumnix::new(config.slo.tpot, migrates)),
        Policy::Xllm => cell.rival(rivals::Xllm::new(config.slo, engines)),
        Policy::TokenScale => cell.rival(rivals::TokenScale::new(config.slo, engines)),
    }
}

fn millis(millis: u64) -> Seconds {
    Seconds::from_millis(millis as f64)
}

#[derive(Clone, Copy)]
struct PolicyRun<'a> {
    trace: &'a Trace,
    rate: f64,
    policy: Policy,
    config: &'a SimConfig,
}

impl PolicyRun<'_> {
    fn rival(&self, rival: impl rivals::Rival) -> Run {
        self.run(&mut rivals::Dispatch::new(rival, self.config.engines))
    }

    fn run(&self, router: &mut impl Router) -> Run {
        let PolicyRun { trace, rate, policy, config } = *self;
        let mut cluster = Cluster::new(trace, config);
        cluster.run(router, Moment::from_start(trace.end() + config.drain));
        let outcomes = cluster.outcomes();
        let judged = trace.arrivals.iter().zip(&outcomes).filter_map(|(arrival, outcome)| {
            let targets = config.targets(arrival.class);
            (!targets.is_batch()).then_some((outcome, targets.slo))
        });
        let report = Report::of_each(&policy.to_string(), rate, router.flips(), judged);
        let classes = match config.classes.is_empty() {
            true => Vec::new(),
            false => ClassReport::of(trace, &outcomes, |class| config.targets(class)),
        };
        let gaps = cluster.gaps().clone();
        let (hit_rate, preemptions) = (cluster.hit_rate(), cluster.preemptions());
        let report = Report { hit_rate, preemptions, classes, ..report }.with_gaps(&gaps);
        Run { report, outcomes, gaps, split: None, timeline: Timeline::default() }
    }
}

/// Returns the upper bound as a run that has attainment alone; other figures are null in JSON.
fn bound_run(trace: &Trace, rate: f64, config: &SimConfig) -> Run {
    let most = bound(trace, &config.best(), config.engines, &config.slo);
    let unknown = f64::NAN;
    let report = Report {
        policy: Policy::Bound.to_string(),
        rate,
        requests: trace.arrivals.len(),
        attainment: most,
        ttft_attainment: most,
        tpot_attainment: unknown,
        itl_attainment: None,
        ttft_p50: unknown,
        ttft_p99: unknown,
        tpot_p50: unknown,
        tpot_p99: unknown,
        itl_p99: unknown,
        itl_max: unknown,
        flips: 0,
        hit_rate: None,
        preemptions: None,
        errors: None,
        classes: Vec::new(),
    };
    let gaps = GapHistogram::default();
    Run { report, outcomes: Vec::new(), gaps, split: None, timeline: Timeline::default() }
}

fn tidegate(cell: &PolicyRun<'_>) -> Run {
    let timeline = Timeline::new(Moment::from_start(cell.trace.end()), TIMELINE_BINS);
    if cell.config.tidegate.gateways > 1 {
        let mut router = GatewaysRouter::new(cell.config, timeline);
        let run = cell.run(&mut router);
        return Run { timeline: router.into_timeline(), ..run };
    }
    let mut router = TidegateRouter::new(cell.config, timeline);
    let run = cell.run(&mut router);
    Run { timeline: router.into_timeline(), ..run }
}

fn best_static(cell: &PolicyRun<'_>) -> Run {
    let engines = cell.config.engines;
    let run = |prefills| Run {
        split: Some(prefills),
        ..cell.run(&mut StaticRouter::new(Some(prefills), engines))
    };
    let mut best = run(1);
    for prefills in 2..engines {
        let other = run(prefills);
        // Equal attainment selects fewer prefill engines.
        if other.report.attainment > best.report.attainment {
            best = other;
        }
    }
    best
}

/// Returns the best fixed split in hindsight: its prefill engines and its report. Runs end at
/// `deadline` after the start. Returns `None` for a fleet of one engine.
pub fn best_split(
    trace: &Trace,
    profile: Profile,
    engines: usize,
    deadline: Seconds,
    slo: &Slo,
) -> Option<(usize, Report)> {
    let drain = deadline - trace.end();
    let config = SimConfig { engines, profile, slo: *slo, drain, ..SimConfig::default() };
    let cell = PolicyRun { trace, rate: 1.0, policy: Policy::BestStatic, config: &config };
    let best = (engines > 1).then(|| best_static(&cell))?;
    best.split.map(|prefills| (prefills, best.report))
}

#[cfg(test)]
#[path = "simulate_tests.rs"]
mod tests;
