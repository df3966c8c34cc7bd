//! The simulator behind `POST /v1/what-if`: the engine model with the proxy's learned costs, on the
//! arrivals that the proxy recorded.

use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate_proxy::what_if::{Simulator, WhatIfOutcome, WhatIfOutcomes, WhatIfScenario};
use tidegate_sim::{Arrival, Policy, Profile, Run, SimConfig, Trace, simulate};
use tidegate_types::{Seconds, Tokens};

/// Time after which no further run starts. A run of 20,000 arrivals takes about a second.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Virtual time after the last arrival. A request that has not ended by then has missed its targets.
const DRAIN: Seconds = Seconds(60.0);
/// KV memory of engines that report none.
const KV_DEFAULT: Tokens = Tokens(400_000);

/// Returns the simulator.
pub fn simulator() -> Simulator {
    Arc::new(run)
}

fn run(scenario: &WhatIfScenario) -> Result<WhatIfOutcomes, String> {
    let cells = cells(scenario)?;
    let trace = trace(scenario).at_rate(scenario.rate);
    let config = SimConfig {
        profile: profile(scenario),
        slo: scenario.slo,
        prefix_caching: scenario.prefix_caching,
        drain: DRAIN,
        ..SimConfig::default()
    };
    let (began, mut done) = (Instant::now(), WhatIfOutcomes::default());
    for (engines, policy) in cells {
        let one =
            |policy| simulate(&trace, scenario.rate, policy, &SimConfig { engines, ..config });
        let run = match policy {
            Policy::BestStatic => best_static(engines, &began, &one),
            policy => (began.elapsed() < TIME_MAX).then(|| one(policy)),
        };
        let Some(Run { report, split, .. }) = run else {
            done.left_out += 1;
            continue;
        };
        done.outcomes.push(WhatIfOutcome {
            engines,
            policy: policy.to_string(),
            split,
            attainment: report.attainment,
            ttft_attainment: report.ttft_attainment,
            tpot_attainment: report.tpot_attainment,
            ttft_p50_seconds: report.ttft_p50,
            ttft_p99_seconds: report.ttft_p99,
            tpot_p50_seconds: report.tpot_p50,
            tpot_p99_seconds: report.tpot_p99,
            itl_p99_seconds: report.itl_p99,
            itl_max_seconds: report.itl_max,
            flips: report.flips,
        });
    }
    Ok(done)
}

/// The best fixed split in hindsight, one run for each split; `None` when the time is over.
fn best_static(engines: usize, began: &Instant, one: &dyn Fn(Policy) -> Run) -> Option<Run> {
    let mut best: Option<Run> = None;
    for prefills in 1..engines {
        if began.elapsed() >= TIME_MAX {
            return None;
        }
        let run = one(Policy::Static(prefills));
        // Ties select the smaller number.
        if best.as_ref().is_none_or(|best| run.report.attainment > best.report.attainment) {
            best = Some(run);
        }
    }
    best
}

/// Every combination of fleet size and policy, by fleet size.
fn cells(scenario: &WhatIfScenario) -> Result<Vec<(usize, Policy)>, String> {
    let mut cells = Vec::new();
    for engines in &scenario.engines {
        for name in &scenario.policies {
            let policy: Policy = name.parse().map_err(|error| format!("{error}"))?;
            if policy == Policy::Bound {
                return Err(
                    "bound is an upper bound, not a policy that can be simulated".to_owned()
                );
            }
            if !policy.runs_on(*engines) {
                return Err(format!(
                    "{name} leaves {engines} engines without a prefill or a decode engine"
                ));
            }
            cells.push((*engines, policy));
        }
    }
    Ok(cells)
}

fn trace(scenario: &WhatIfScenario) -> Trace {
    let arrival = |arrival: &tidegate_proxy::what_if::TraceArrival| Arrival {
        at: arrival.at,
        prompt: arrival.prompt.max(Tokens(1)),
        output: arrival.output.max(Tokens(1)),
        blocks: arrival.blocks.to_vec(),
        ..Arrival::default()
    };
    Trace { arrivals: scenario.arrivals.iter().map(arrival).collect() }
}

/// Returns the profile with the learned cost models.
fn profile(scenario: &WhatIfScenario) -> Profile {
    let WhatIfScenario { prefill, decode, transfer, chunk, .. } = scenario;
    let t_base = prefill.base.min(decode.base);
    let per_chunk = t_base / chunk.as_f64().max(1.0);
    Profile {
        name: "this fleet",
        t_base,
        t_weights: decode.base - t_base,
        t_kv: decode.per_kv_token,
        t_seq: decode.per_stream,
        t_tok: (prefill.per_token - per_chunk).max(Seconds(1e-9)),
        t_att: prefill.per_attention,
        t_handoff: transfer.base,
        t_xfer: transfer.per_token,
        kv_capacity: Some(scenario.kv_capacity)
            .filter(|tokens| *tokens > Tokens::ZERO)
            .unwrap_or(KV_DEFAULT),
        max_num_seqs: scenario.streams_max.max(1),
        ..Profile::default()
    }
    .with_chunk(*chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_proxy::what_if::TraceArrival;
    use tidegate_types::Slo;

    fn scenario(policies: &[&str], engines: &[usize]) -> WhatIfScenario {
        let reference = Profile::default();
        let arrival = |i: u32| TraceArrival {
            at: Seconds(f64::from(i) * 0.1),
            prompt: Tokens(2000),
            output: Tokens(100),
            blocks: Box::default(),
        };
        WhatIfScenario {
            arrivals: (0..200).map(arrival).collect(),
            engines: engines.to_vec(),
            policies: policies.iter().map(ToString::to_string).collect(),
            slo: Slo::default(),
            rate: 1.0,
            prefill: reference.prefill_model(),
            decode: reference.decode_model(),
            transfer: tidegate_scheduler::cost::TransferModel {
                base: reference.t_handoff,
                per_token: reference.t_xfer,
            },
            chunk: reference.chunk,
            kv_capacity: reference.kv_capacity,
            streams_max: reference.max_num_seqs,
            prefix_caching: false,
        }
    }

    #[test]
    fn learned_costs_reproduce_the_profile_that_generated_them() {
        let (reference, made) = (Profile::default(), profile(&scenario(&[], &[])));
        for (a, b) in [
            (reference.t_base, made.t_base),
            (reference.t_weights, made.t_weights),
            (reference.t_tok, made.t_tok),
            (reference.t_kv, made.t_kv),
        ] {
            assert!((a - b).get().abs() < 1e-12, "{a} {b}");
        }
        assert_eq!((made.kv_capacity, made.chunk), (reference.kv_capacity, reference.chunk));
    }

    #[test]
    fn more_engines_serve_more_and_every_combination_is_answered() {
        let done = run(&scenario(&["tidegate", "aggregated"], &[2, 8])).unwrap();
        assert_eq!((done.outcomes.len(), done.left_out), (4, 0));
        let of = |slot: usize| &done.outcomes[slot];
        assert_eq!((of(0).engines, of(2).engines), (2, 8));
        assert!(of(2).attainment > of(0).attainment, "{done:?}");
        for outcome in &done.outcomes {
            let (p99, max) = (outcome.itl_p99_seconds, outcome.itl_max_seconds);
            assert!(p99 > 0.0 && p99 <= max, "{outcome:?}");
        }
        // Prefill chunks lie between the steps of an aggregated engine's streams.
        assert!(of(1).itl_max_seconds > of(0).tpot_p50_seconds, "{done:?}");
    }

    #[test]
    fn shared_prefixes_help_where_the_engines_cache_them() {
        let mut shared = scenario(&["tidegate"], &[2]);
        for arrival in &mut shared.arrivals {
            arrival.blocks = [1, 2, 3].into();
        }
        let without = run(&shared).unwrap().outcomes[0].attainment;
        shared.prefix_caching = true;
        let with = run(&shared).unwrap().outcomes[0].attainment;
        assert!(with > without, "{with} {without}");
    }

    #[test]
    fn the_best_fixed_split_is_that_of_the_simulator() {
        let fixed = scenario(&["static:best"], &[4]);
        let done = run(&fixed).unwrap();
        let config = SimConfig {
            engines: 4,
            profile: profile(&fixed),
            slo: fixed.slo,
            drain: DRAIN,
            ..SimConfig::default()
        };
        let best = simulate(&trace(&fixed), 1.0, Policy::BestStatic, &config);
        assert_eq!(
            (done.outcomes[0].split, &*done.outcomes[0].policy),
            (best.split, "static:best")
        );
        assert_eq!(done.outcomes[0].attainment, best.report.attainment);
    }

    #[test]
    fn unknown_and_impossible_policies_are_named() {
        for (policy, engines) in [("sideways", 4), ("static:4", 4), ("bound", 4)] {
            let error = run(&scenario(&[policy], &[engines])).unwrap_err();
            assert!(error.contains(policy), "{error}");
        }
    }
}
