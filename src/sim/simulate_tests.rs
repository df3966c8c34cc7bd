//! Simulated fleets: the TTFT of a single request, equalities between policies, conservation of
//! requests.

use super::*;
use crate::trace::Arrival;
use proptest::prelude::*;
use tidegate_types::Tokens;

const POLICIES: [Policy; 13] = [
    Policy::Tidegate,
    Policy::Conditional(1),
    Policy::DynamoKv,
    Policy::Sticky,
    Policy::CacheAware,
    Policy::Llumnix { migrates: false },
    Policy::Llumnix { migrates: true },
    Policy::Xllm,
    Policy::TokenScale,
    Policy::Aggregated,
    Policy::Static(1),
    Policy::BestStatic,
    Policy::Interval { every: 5000, restart: 2000 },
];

fn lone(prompt: u64, output: u64) -> Trace {
    let (prompt, output) = (Tokens(prompt), Tokens(output));
    Trace { arrivals: vec![Arrival { at: Seconds(1.0), prompt, output, ..Arrival::default() }] }
}

fn busy(seed: u64) -> Trace {
    Trace::bursts(seed, Seconds(40.0), 14.0, Seconds(10.0)).scale_output(0.3)
}

fn run(trace: &Trace, policy: Policy) -> Run {
    simulate(trace, 1.0, policy, &SimConfig::default())
}

fn near(got: Option<Seconds>, expected: f64) {
    assert!((got.unwrap().get() - expected).abs() < 1e-6, "{got:?}, not {expected}");
}

/// Prefill time of a prompt of 1,000 tokens alone in its step, in seconds.
const PREFILL: f64 = 2e-3 + 71e-6 * 1000.0 + 1.33e-9 * 1000.0 * 1000.0 / 2.0;
const STEP: f64 = 15.1e-3 + 30.6e-9 * 1000.0;

#[test]
fn the_ttft_of_a_disaggregated_request_is_prefill_hand_off_and_one_step() {
    let outcome = run(&lone(1000, 3), Policy::Static(4)).outcomes[0];
    near(outcome.ttft, PREFILL + 3e-3 + 8e-6 * 1000.0 + STEP);
    near(outcome.tpot, STEP + 30.6e-9);
}

#[test]
fn a_prior_wrong_by_a_factor_of_two_is_corrected_by_observations() {
    let trace = Trace::bursts(3, Seconds(120.0), 14.0, Seconds(30.0));
    let attained = |name: &str| {
        let disturbance = name.parse().unwrap();
        let config = SimConfig { disturbance, ..SimConfig::default() };
        simulate(&trace, 1.0, Policy::Tidegate, &config).report.attainment
    };
    let (known, doubled, halved) = (attained("none"), attained("prior:2"), attained("prior:0.5"));
    // Without observations, attainment is .574 with doubled and .962 with halved priors.
    assert!(doubled > known - 0.02 && halved > known - 0.02, "{known} {doubled} {halved}");
}

#[test]
fn every_gap_is_counted_once_and_the_largest_is_at_least_the_mean() {
    let trace = busy(5);
    for policy in POLICIES {
        let run = run(&trace, policy);
        assert!(run.outcomes.iter().all(|outcome| outcome.done), "{policy}");
        let gaps = trace.arrivals.iter().map(|arrival| arrival.output.get() - 1).sum::<u64>();
        assert_eq!(run.gaps.count(), gaps, "{policy}");
        for outcome in &run.outcomes {
            let mean = outcome.tpot.unwrap_or_default() - Seconds(1e-9);
            assert!(outcome.gap_max.unwrap_or_default() >= mean, "{policy}: {outcome:?}");
        }
    }
}

/// Runs with one disturbance on engines with this KV capacity.
fn disturbed(trace: &Trace, policy: Policy, name: &str, capacity: u64) -> Run {
    let profile = Profile { kv_capacity: Tokens(capacity), ..Profile::default() };
    let disturbance = name.parse().unwrap();
    simulate(trace, 1.0, policy, &SimConfig { profile, disturbance, ..SimConfig::default() })
}

#[test]
fn preemption_occurs_only_without_memory_and_loses_no_request() {
    let trace = busy(6);
    for policy in POLICIES {
        let plain = disturbed(&trace, policy, "none", 430_000);
        let unused = disturbed(&trace, policy, "preemption", 430_000);
        assert_eq!(unused.report.preemptions, Some(0), "{policy}");
        assert_eq!((plain.outcomes, plain.gaps), (unused.outcomes, unused.gaps), "{policy}");
    }
    let gaps = trace.arrivals.iter().map(|arrival| arrival.output.get() - 1).sum::<u64>();
    for policy in [Policy::Aggregated, Policy::Static(4), Policy::Llumnix { migrates: true }] {
        let run = disturbed(&trace, policy, "preemption", 9_000);
        assert!(run.report.preemptions > Some(0), "{policy}");
        assert!(run.outcomes.iter().all(|outcome| outcome.done), "{policy}");
        assert_eq!(run.gaps.count(), gaps, "{policy}");
    }
}

#[test]
fn bursts_shorten_the_tpot_and_keep_the_gaps() {
    let trace = lone(1000, 2000);
    let of = |name| disturbed(&trace, Policy::Aggregated, name, 430_000);
    let (plain, bursts) = (of("none"), of("bursts:2"));
    let ratio = plain.report.tpot_p50 / bursts.report.tpot_p50;
    assert!((ratio - 2.0).abs() < 0.1, "{ratio}");
    assert!((plain.report.itl_p99 / bursts.report.itl_p99 - 1.0).abs() < 0.05);
}

#[test]
fn the_largest_gap_is_the_step_shared_with_a_prefill() {
    let arrival = |at, prompt, output| Arrival {
        at: Seconds(at),
        prompt: Tokens(prompt),
        output: Tokens(output),
        ..Arrival::default()
    };
    let trace = Trace { arrivals: vec![arrival(0.0, 100, 100), arrival(0.3, 1000, 1)] };
    let config = SimConfig { engines: 1, ..SimConfig::default() };
    let run = simulate(&trace, 1.0, Policy::Aggregated, &config);
    let gap = run.outcomes[0].gap_max.unwrap().get();
    assert!((gap - PREFILL - 72e-6).abs() < 5e-6, "{gap}");
    assert_eq!((run.outcomes[1].gap_max, run.report.itl_max), (None, gap));
}

#[test]
fn the_ttft_of_a_colocated_request_is_its_prefill() {
    for policy in [Policy::Aggregated, Policy::Tidegate] {
        let outcome = run(&lone(1000, 3), policy).outcomes[0];
        near(outcome.ttft, PREFILL);
        near(outcome.tpot, STEP + 30.6e-9 * 1.5);
    }
}

#[test]
fn prefix_caching_shortens_the_turns_of_a_session() {
    let trace = Trace::agents(2, Seconds(200.0), 0.02);
    for policy in [Policy::Tidegate, Policy::CacheAware, Policy::DynamoKv, Policy::Sticky] {
        let of = |prefix_caching| {
            let config = SimConfig { prefix_caching, ..SimConfig::default() };
            simulate(&trace, 1.0, policy, &config).report
        };
        let (with, without) = (of(true), of(false));
        assert_eq!(without.hit_rate, None);
        assert!(with.hit_rate.unwrap() > 0.6, "{policy}: {:?}", with.hit_rate);
        assert!(with.ttft_p50 < without.ttft_p50, "{policy}");
    }
}

#[test]
fn no_disturbance_raises_attainment() {
    let trace = busy(8);
    let of = |name: &str| {
        let config = SimConfig { disturbance: name.parse().unwrap(), ..SimConfig::default() };
        let run = simulate(&trace, 1.0, Policy::Tidegate, &config);
        assert!(run.outcomes.iter().all(|outcome| outcome.done || outcome.error), "{name}");
        run.report.attainment
    };
    let undisturbed = of("none");
    for name in ["noise:0.15", "stalls", "slow:2", "prior:2", "prior:0.5", "shared-link"] {
        assert!(of(name) <= undisturbed + 0.02, "{name}: {} {undisturbed}", of(name));
    }
    assert!(of("slow:2+stalls") < undisturbed);
}

#[test]
fn three_gateways_serve_every_request_and_lose_little() {
    let trace = busy(3);
    let of = |text: &str| {
        let tidegate = TidegateParams::default().with(text).unwrap();
        let config = SimConfig { tidegate, ..SimConfig::default() };
        simulate(&trace, 1.0, Policy::Tidegate, &config)
    };
    let (one, three, deaf) = (of("gateways=1"), of("gateways=3"), of("gateways=3+exchange=20"));
    for run in [&one, &three, &deaf] {
        assert_eq!(run.outcomes.len(), trace.arrivals.len());
        assert!(run.outcomes.iter().all(|outcome| outcome.ttft.is_some()));
    }
    let attained = |run: &Run| run.report.attainment;
    assert_ne!(one.outcomes, three.outcomes, "each gateway has its own view");
    assert!(three.report.flips > 0, "the leader plans for all");
    assert!(attained(&three) > attained(&one) - 0.05, "{} {}", attained(&three), attained(&one));
    assert!(attained(&three) > attained(&deaf), "the exchange of loads helps");
}

#[test]
fn live_migration_moves_streams_and_loses_none() {
    let outcomes = run(&busy(8), Policy::Llumnix { migrates: true }).outcomes;
    assert!(outcomes.iter().all(|outcome| outcome.done));
}

#[test]
fn a_periodic_controller_follows_a_shift_and_restarts_cost_attainment() {
    let trace = busy(8);
    let of = |restart| run(&trace, Policy::Interval { every: 5000, restart }).report;
    let (instant, slow) = (of(0), of(10_000));
    assert!(instant.flips > 0);
    assert!(instant.attainment > slow.attainment, "{instant:?} {slow:?}");
}

#[test]
fn equal_inputs_give_equal_reports_and_outcomes() {
    let trace = busy(5);
    for policy in POLICIES {
        let (one, other) = (run(&trace, policy), run(&trace, policy));
        assert_eq!(one.report, other.report);
        assert_eq!(one.outcomes, other.outcomes);
    }
}

#[test]
fn the_best_static_split_has_the_highest_attainment() {
    let trace = busy(6);
    let best = run(&trace, Policy::BestStatic);
    let all: Vec<Report> = (1..8).map(|k| run(&trace, Policy::Static(k)).report).collect();
    assert!(all.iter().all(|report| report.attainment <= best.report.attainment));
    let split = best.split.unwrap();
    assert_eq!(all[split - 1].attainment, best.report.attainment);
    assert_eq!(best.report.policy, "static:best");
    let (k, report) =
        best_split(&trace, Profile::default(), 8, Seconds(3600.0), &Slo::default()).unwrap();
    assert_eq!((k, report.attainment), (split, best.report.attainment));
}

#[test]
fn requests_unfinished_at_the_deadline_count_as_missed() {
    let config = SimConfig { drain: Seconds(0.5), ..SimConfig::default() };
    for policy in POLICIES {
        let report = simulate(&lone(1000, 1000), 1.0, policy, &config).report;
        assert_eq!((report.ttft_attainment, report.attainment), (1.0, 0.0), "{policy}");
    }
}

#[test]
fn fixed_splits_and_fleets_without_flips_never_flip() {
    let trace = busy(7);
    assert_eq!(run(&trace, Policy::Static(3)).report.flips, 0);
    let tidegate = TidegateParams { flips: false, start: Some(3), ..TidegateParams::default() };
    let config = SimConfig { tidegate, ..SimConfig::default() };
    assert_eq!(simulate(&trace, 1.0, Policy::Tidegate, &config).report.flips, 0);
}

#[test]
fn switching_engines_end_every_request_at_lower_attainment() {
    // Phases of 60 s, longer than a role change.
    let trace = Trace::bursts(3, Seconds(360.0), 14.0, Seconds(60.0)).scale_output(0.3);
    let with = |switch| {
        let tidegate = TidegateParams { switch, ..TidegateParams::default() };
        simulate(&trace, 1.0, Policy::Tidegate, &SimConfig { tidegate, ..SimConfig::default() })
    };
    let (instant, slow) = (with(None), with(Some(Seconds(2.0))));
    assert!(slow.report.flips > 0 && slow.outcomes.iter().all(|o| o.done || o.error));
    let served = slow.outcomes.iter().filter(|o| o.done).count();
    assert!(served as f64 > 0.99 * slow.outcomes.len() as f64, "{served}");
    assert!(slow.report.attainment < instant.report.attainment);
}

#[test]
fn a_mixed_fleet_lies_between_its_two_kinds_of_engine() {
    let second = Profile::named("llama70b-a100x4");
    let trace = Trace::bursts(5, Seconds(120.0), 12.0, Seconds(20.0)).scale_output(0.3);
    let with = |profile: Profile, second| {
        let config = SimConfig { profile, second, ..SimConfig::default() };
        simulate(&trace, 1.0, Policy::Tidegate, &config).report.attainment
    };
    let (best, mixed) = (with(Profile::default(), None), with(Profile::default(), second));
    let worst = with(second.unwrap(), None);
    assert!(worst < mixed && mixed < best, "{worst} {mixed} {best}");
}

#[test]
fn every_policy_that_runs_on_one_engine_serves_all_requests() {
    let config = SimConfig { engines: 1, ..SimConfig::default() };
    for policy in [Policy::Tidegate, Policy::Aggregated] {
        assert_eq!(simulate(&lone(500, 5), 1.0, policy, &config).report.attainment, 1.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_request_ends_or_was_refused(
        seed: u64, engines in 2..6_usize, rate in 2.0..30.0_f64, policy in 0..4_usize
    ) {
        let trace = Trace::bursts(seed, Seconds(15.0), rate, Seconds(5.0)).scale_output(0.2);
        let config = SimConfig { engines, ..SimConfig::default() };
        let run = simulate(&trace, 1.0, POLICIES[policy], &config);
        for (outcome, arrival) in run.outcomes.iter().zip(&trace.arrivals) {
            prop_assert!(outcome.done != outcome.error, "{outcome:?}");
            prop_assert_eq!(outcome.tokens, if outcome.done { arrival.output } else { Tokens(0) });
            prop_assert!(outcome.ttft.is_none_or(|ttft| ttft.get() > 0.0));
        }
    }
}

/// Bursts of `rate` requests per second in the default class, and a share of them in class 1.
fn classed(rate: f64, share: f64) -> Trace {
    let trace = Trace::bursts(3, Seconds(120.0), rate, Seconds(20.0)).scale_output(0.3);
    trace.with_class(ClassId(1), share, 7)
}

#[test]
fn batch_work_takes_what_is_left_and_attains_nothing_of_its_own() {
    let load = classed(20.0, 0.7);
    let classes = Classes::default().with_batch().unwrap();
    let config = SimConfig { engines: 4, classes, ..SimConfig::default() };
    let reports = |trace: &Trace, config: &SimConfig| {
        simulate(trace, 1.0, Policy::Tidegate, config).report.classes
    };
    let known = reports(&load, &config);
    let alone = reports(&load.clone().without_class(ClassId(1)), &config);
    let tidegate = TidegateParams { knows_classes: false, ..TidegateParams::default() };
    let unknown = reports(&load, &SimConfig { tidegate, ..config });
    let default = |reports: &[ClassReport]| reports[0].attainment.unwrap();
    assert_eq!((known[0].class, known[1].class, known[1].attainment), (0, 1, None));
    assert!(default(&known) > default(&alone) - 0.02, "{known:?} {alone:?}");
    assert!(default(&known) > default(&unknown) + 0.05, "{known:?} {unknown:?}");
    assert!(known[1].done > 0.2 && known[1].done < unknown[1].done, "{known:?} {unknown:?}");
}

#[test]
fn each_class_is_judged_by_its_own_targets() {
    let strict = Slo { ttft: Seconds(0.5), tpot: Seconds(0.02), itl: None };
    let classes = Classes::default().with_interactive(strict).unwrap();
    let config = SimConfig { classes, ..SimConfig::default() };
    let (trace, tidegate) = (classed(11.0, 0.2), TidegateParams::default());
    let run = simulate(&trace, 1.0, Policy::Tidegate, &config);
    let met = trace.arrivals.iter().zip(&run.outcomes).filter(|(arrival, outcome)| {
        let slo = if arrival.class == ClassId(1) { strict } else { config.slo };
        outcome.meets(&slo)
    });
    assert_eq!(run.report.attainment, met.count() as f64 / trace.arrivals.len() as f64);
    let tidegate = TidegateParams { knows_classes: false, ..tidegate };
    let unknown = simulate(&trace, 1.0, Policy::Tidegate, &SimConfig { tidegate, ..config });
    let strict = |run: &Run| run.report.classes[1].attainment.unwrap();
    assert!(strict(&run) > strict(&unknown) + 0.02, "{:?} {:?}", run.report, unknown.report);
    assert!(
        simulate(&trace, 1.0, Policy::Tidegate, &SimConfig::default()).report.classes.is_empty()
    );
}
