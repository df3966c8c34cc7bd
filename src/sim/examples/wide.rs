//! How far below the best alternative is tidegate, over many cells? Prints each cell in which it is
//! below at all, and a count: `wide [SHARE [SEED]]`, SHARE of the cells drawn at random.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "an example reads traces, and prints"
)]

use tidegate_sim::{Policy, Profile, SimConfig, Trace, simulate};
use tidegate_terms::{Seconds, Slo, Tokens};

const TRACES: &str = "../shared/traces/";

fn main() {
    let args: Vec<f64> = std::env::args().skip(1).map(|a| a.parse().expect("a number")).collect();
    let share = args.first().copied().unwrap_or(0.05);
    let mut seed = args.get(1).map_or(1, |seed| *seed as u64);
    let read = |name: &str| {
        Trace::parse(&std::fs::read_to_string(format!("{TRACES}{name}")).expect("trace"))
            .expect("trace")
            .cap_prompt(Tokens(32_000))
    };
    let code = read("azure_llm_2023_code.first30min.csv");
    let conv = read("azure_llm_2023_conv.first30min.csv");
    let traces = [
        ("r60", read("regime_shift_60s.jsonl")),
        ("r300", read("regime_shift_300s.jsonl")),
        ("mooncake", read("mooncake_conversation.first30min.jsonl")),
        ("both", Trace::merge([conv.clone(), code.clone()])),
        ("code", code),
        ("conv", conv),
    ];
    let (mut cells, mut worse, mut gained) = (0, 0, 0.0);
    for (name, trace) in &traces {
        for engines in [4, 8, 16, 64] {
            for rate in [0.5, 1.0, 1.5, 2.0] {
                for ttft in [0.5, 1.0, 5.0] {
                    for tpot in [0.02, 0.03, 0.05] {
                        if !drawn(&mut seed, share) {
                            continue;
                        }
                        // The same load an engine for every size of fleet.
                        let rate = rate * engines as f64 / 8.0;
                        let slo = Slo { ttft: Seconds(ttft), tpot: Seconds(tpot) };
                        let trace = trace.clone().at_rate(rate);
                        let (ours, _) = best(&trace, rate, engines, slo, &[Policy::Tidegate]);
                        let (theirs, by) = best(&trace, rate, engines, slo, &others(engines));
                        cells += 1;
                        gained += ours - theirs;
                        if ours < theirs {
                            worse += usize::from(ours < theirs - 0.005);
                            println!(
                                "{name:9} x{rate:<4} {engines:2} engines, {ttft} s, {tpot} s: {ours:.3}, {by} {theirs:.3}"
                            );
                        }
                    }
                }
            }
        }
    }
    println!(
        "{cells} cells: {worse} more than half a point below, {:+.3} in the mean",
        gained / f64::from(cells)
    );
}

fn others(engines: usize) -> Vec<Policy> {
    // Every eighth split of a large fleet.
    let splits = (1..engines).step_by((engines / 8).max(1));
    let splits = splits.map(|k| format!("static:{k}").parse().expect("a policy"));
    let interval = Policy::Interval { every: 5000, restart: 0 };
    splits.chain([Policy::Aggregated, interval]).collect()
}

fn best(trace: &Trace, rate: f64, engines: usize, slo: Slo, policies: &[Policy]) -> (f64, String) {
    let mut best = (-1.0, String::new());
    for chunk in [512, 2048] {
        for policy in policies {
            let profile = Profile::default().with_chunk(Tokens(chunk));
            let config = SimConfig { profile, engines, slo, ..SimConfig::default() };
            let attainment = simulate(trace, rate, *policy, &config).report.attainment;
            if attainment > best.0 {
                best = (attainment, format!("{policy}@{chunk}"));
            }
        }
    }
    best
}

/// splitmix64.
fn drawn(seed: &mut u64, share: f64) -> bool {
    *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) as f64 / u64::MAX as f64) < share
}
