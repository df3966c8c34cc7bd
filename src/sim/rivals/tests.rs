//! Tests of characteristic behaviour of the rivals on small loads.

use tidegate_types::{Seconds, Slo, Tokens};

use crate::policy::Policy;
use crate::simulate::{SimConfig, simulate};
use crate::trace::{Arrival, Trace};

fn attainment(trace: &Trace, policy: Policy, config: &SimConfig) -> f64 {
    simulate(trace, 1.0, policy, config).report.attainment
}

/// Phases of long prompts and of long answers.
fn shifts() -> Trace {
    Trace::bursts(3, Seconds(240.0), 14.0, Seconds(60.0))
}

#[test]
fn migration_raises_the_attainment_of_llumnix_under_shifting_demand() {
    let config = SimConfig::default();
    let of = |migrates| attainment(&shifts(), Policy::Llumnix { migrates }, &config);
    let (without, with) = (of(false), of(true));
    assert!(with > without, "{without} {with}");
}

#[test]
fn llumnix_and_xllm_keep_the_tpot_target_by_packing() {
    for policy in [Policy::Llumnix { migrates: true }, Policy::Xllm] {
        let report = simulate(&shifts(), 1.0, policy, &SimConfig::default()).report;
        assert!(report.tpot_attainment > 0.97, "{policy}: {}", report.tpot_attainment);
        assert!(report.flips > 0, "{policy}");
    }
}

#[test]
fn streams_go_to_engines_with_a_free_sequence_slot() {
    let default = SimConfig::default();
    let profile = crate::Profile { max_num_seqs: 4, ..default.profile };
    let slo = Slo { ttft: Seconds(0.5), tpot: Seconds(0.2), ..Slo::default() };
    let config = SimConfig { engines: 4, profile, slo, ..default };
    // Eight long answers at once: two decode engines have the slots, one has the time.
    let arrivals = (0..8).map(|request| Arrival {
        at: Seconds(f64::from(request) * 0.05),
        prompt: Tokens(200),
        output: Tokens(400),
        ..Arrival::default()
    });
    let trace = Trace { arrivals: arrivals.collect() };
    for policy in [Policy::Llumnix { migrates: false }, Policy::Xllm] {
        assert!(attainment(&trace, policy, &config) > 0.8, "{policy}");
    }
}
