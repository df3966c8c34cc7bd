//! A policy on a fleet, over a trace: the comparison that `tidegate simulate` makes.

use tidegate_types::{Moment, Seconds, Slo};

use crate::bound::bound;
use crate::cluster::Cluster;
use crate::follow::{Follow, TidegateParams};
use crate::immediate::Immediate;
use crate::interval::Interval;
use crate::policy::Policy;
use crate::profile::Profile;
use crate::report::{Outcome, Report};
use crate::timeline::Timeline;
use crate::trace::Trace;

/// Bins of a run's timeline.
const TIMELINE_BINS: usize = 360;

/// The fleet, and what it is judged by.
#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    /// Engines in the fleet.
    pub engines: usize,
    /// Their physics.
    pub profile: Profile,
    /// That of the second half of them, if it is another: the same model on other hardware.
    pub second: Option<Profile>,
    /// The targets.
    pub slo: Slo,
    /// How long after the last arrival requests may take to end.
    pub drain: Seconds,
    /// What the policy `tidegate` runs with.
    pub tidegate: TidegateParams,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Run {
    /// The figures.
    pub report: Report,
    /// Request by request, in the order of the trace.
    pub outcomes: Vec<Outcome>,
    /// Prefill engines of the split, for policies that keep one.
    pub split: Option<usize>,
    /// Pools and queue over time; empty for policies without a queue of their own.
    pub timeline: Timeline,
}

impl Default for SimConfig {
    fn default() -> SimConfig {
        SimConfig {
            engines: 8,
            profile: Profile::default(),
            second: None,
            slo: Slo::default(),
            // An overloaded fleet works off half an hour's backlog; the longest answer takes minutes.
            drain: Seconds(3600.0),
            tidegate: TidegateParams::default(),
        }
    }
}

impl SimConfig {
    /// Each engine's physics.
    pub fn fleet(&self) -> Vec<Profile> {
        let half = self.engines.div_ceil(2);
        let of = |engine| self.second.filter(|_| engine >= half).unwrap_or(self.profile);
        (0..self.engines).map(of).collect()
    }

    /// An engine that is as good as the best in everything: no fleet of it is worse than this one.
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

/// Run `policy` over `trace`, whose times are already at `rate` times their own.
pub fn simulate(trace: &Trace, rate: f64, policy: Policy, config: &SimConfig) -> Run {
    match policy {
        Policy::Aggregated => immediate(trace, rate, policy, None, config),
        Policy::Static(prefills) => immediate(trace, rate, policy, Some(prefills), config),
        Policy::BestStatic => best_static(trace, rate, config),
        Policy::Interval { every, restart } => {
            let (every, restart) = (millis(every), millis(restart));
            let mut router = Interval::new(every, restart, config.slo.tpot, config.engines);
            let mut cluster = Cluster::new(trace, &config.fleet());
            cluster.run(&mut router, Moment::from_start(trace.end() + config.drain));
            let (outcomes, word) = (cluster.outcomes(), policy.to_string());
            let report = Report::of(&word, rate, router.flips(), &outcomes, &config.slo);
            Run { report, outcomes, split: None, timeline: Timeline::default() }
        }
        Policy::Bound => no_better(trace, rate, config),
        Policy::Tidegate => tidegate(trace, rate, config),
    }
}

fn millis(millis: u64) -> Seconds {
    Seconds::from_millis(millis as f64)
}

/// The bound as a run of which nothing else is known: null in JSON.
fn no_better(trace: &Trace, rate: f64, config: &SimConfig) -> Run {
    let most = bound(trace, &config.best(), config.engines, &config.slo);
    let unknown = f64::NAN;
    let report = Report {
        policy: Policy::Bound.to_string(),
        rate,
        requests: trace.arrivals.len(),
        attainment: most,
        ttft_attainment: most,
        tpot_attainment: unknown,
        ttft_p50: unknown,
        ttft_p99: unknown,
        tpot_p50: unknown,
        tpot_p99: unknown,
        flips: 0,
        errors: None,
    };
    Run { report, outcomes: Vec::new(), split: None, timeline: Timeline::default() }
}

fn tidegate(trace: &Trace, rate: f64, config: &SimConfig) -> Run {
    let mut cluster = Cluster::new(trace, &config.fleet());
    let timeline = Timeline::new(Moment::from_start(trace.end()), TIMELINE_BINS);
    let mut router = Follow::new(config, timeline);
    cluster.run(&mut router, Moment::from_start(trace.end() + config.drain));
    let outcomes = cluster.outcomes();
    let policy = Policy::Tidegate.to_string();
    let report = Report::of(&policy, rate, router.flips(), &outcomes, &config.slo);
    Run { report, outcomes, split: None, timeline: router.into_timeline() }
}

fn immediate(
    trace: &Trace,
    rate: f64,
    policy: Policy,
    prefills: Option<usize>,
    config: &SimConfig,
) -> Run {
    let mut cluster = Cluster::new(trace, &config.fleet());
    let mut router = Immediate::new(prefills, config.engines);
    cluster.run(&mut router, Moment::from_start(trace.end() + config.drain));
    let outcomes = cluster.outcomes();
    let report = Report::of(&policy.to_string(), rate, 0, &outcomes, &config.slo);
    Run { report, outcomes, split: prefills, timeline: Timeline::default() }
}

fn best_static(trace: &Trace, rate: f64, config: &SimConfig) -> Run {
    let run = |prefills| immediate(trace, rate, Policy::BestStatic, Some(prefills), config);
    let mut best = run(1);
    for prefills in 2..config.engines {
        let other = run(prefills);
        // Ties go to the smaller number.
        if other.report.attainment > best.report.attainment {
            best = other;
        }
    }
    best
}

/// The best of all splits in hindsight: its prefill engines and its report. What is unfinished at
/// `deadline` after the start stays so. `None` if there is nothing to split.
pub fn best_split(
    trace: &Trace,
    profile: Profile,
    engines: usize,
    deadline: Seconds,
    slo: &Slo,
) -> Option<(usize, Report)> {
    let drain = deadline - trace.end();
    let config = SimConfig { engines, profile, slo: *slo, drain, ..SimConfig::default() };
    let best = (engines > 1).then(|| best_static(trace, 1.0, &config))?;
    best.split.map(|prefills| (prefills, best.report))
}

#[cfg(test)]
#[path = "simulate_tests.rs"]
mod tests;
