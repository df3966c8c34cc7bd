//! Runs every policy named on the command line on the cells of the table in
//! docs/spec/engine-model.md#reference-results: `cells POLICY,… [TRACE or CELL,…]`. `DISTURB` is a
//! disturbance as for `tidegate simulate --disturb`, `SET` a list of parameters.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "an example reads traces and a clock, and prints"
)]

use tidegate_sim::{Policy, Profile, Run, SimConfig, TidegateParams, Trace, simulate};
use tidegate_types::{Seconds, Slo, Tokens};

const TRACES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/traces/");

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let policies: Vec<Policy> = args[0].split(',').map(|p| p.parse().expect("policy")).collect();
    let only = args.get(1).cloned().unwrap_or_default();
    let read = |name: &str| {
        Trace::parse(&std::fs::read_to_string(format!("{TRACES}{name}")).expect("trace"))
            .expect("trace")
            .cap_prompt(Tokens(32_000))
    };
    let r60 = read("regime_shift_60s.jsonl");
    let r300 = read("regime_shift_300s.jsonl");
    let code = read("azure_llm_2023_code.first30min.csv");
    let conv = read("azure_llm_2023_conv.first30min.csv");
    let both = Trace::merge([conv, code.clone()]);
    let cells = [
        ("regime60", &r60, [0.8, 1.0, 1.2, 1.62].as_slice()),
        ("regime300", &r300, &[0.8, 1.0, 1.2]),
        ("code", &code, &[1.0, 2.0]),
        ("both", &both, &[1.0, 2.0]),
    ];
    for (name, trace, rates) in cells {
        for rate in rates {
            let cell = format!("{name}x{rate}");
            if !only.is_empty() && only.split(',').all(|word| word != cell && word != name) {
                continue;
            }
            print!("{cell:14}");
            for policy in &policies {
                for chunk in [512, 2048] {
                    print_run(trace, *rate, *policy, chunk);
                }
            }
            println!();
        }
    }
}

/// Simulates one policy with one chunk size and prints its figures.
fn print_run(trace: &Trace, rate: f64, policy: Policy, chunk: u64) {
    let second = std::env::var("SECOND").ok();
    let second = second.map(|name| Profile::named(&name).expect("a profile"));
    let disturbance = std::env::var("DISTURB").unwrap_or_else(|_| "none".to_owned());
    let config = SimConfig {
        profile: Profile::default().with_chunk(Tokens(chunk)),
        second: second.map(|second| second.with_chunk(Tokens(chunk))),
        tidegate: params(),
        slo: slo(),
        disturbance: disturbance.parse().expect("a disturbance"),
        ..SimConfig::default()
    };
    let began = std::time::Instant::now();
    let trace = trace.clone().at_rate(rate);
    let run = simulate(&trace, rate, policy, &config);
    let r = &run.report;
    if let Some(width) = std::env::var("BINS").ok().and_then(|width| width.parse::<f64>().ok()) {
        println!("\n{chunk} {:?}", misses_by_bin(&trace, &run, &config.slo, width));
    }
    print!(
        "  {policy}@{chunk} {:.3} (t{:.3} p{:.3} f{}{} itl {:.0}/{:.0} ms) {:.1}s",
        r.attainment,
        r.ttft_attainment,
        r.tpot_attainment,
        r.flips,
        run.split.map_or(String::new(), |k| format!(" {k}P")),
        r.itl_p99 * 1e3,
        r.itl_max * 1e3,
        began.elapsed().as_secs_f64(),
    );
}

/// Counts arrivals, missed TTFT targets and missed TPOT targets in bins of `width` seconds.
fn misses_by_bin(trace: &Trace, run: &Run, slo: &Slo, width: f64) -> Vec<(u32, u32, u32)> {
    let mut bins: Vec<(u32, u32, u32)> = Vec::new();
    for (arrival, outcome) in trace.arrivals.iter().zip(&run.outcomes) {
        let bin = (arrival.at.get() / width) as usize;
        bins.resize(bins.len().max(bin + 1), (0, 0, 0));
        bins[bin].0 += 1;
        bins[bin].1 += u32::from(!outcome.meets_ttft(slo));
        bins[bin].2 += u32::from(!outcome.meets_tpot(slo));
    }
    bins
}

/// The targets, with `SLO_ITL` in seconds if it is set.
fn slo() -> Slo {
    let itl = std::env::var("SLO_ITL").ok().map(|itl| Seconds(itl.parse().expect("seconds")));
    Slo { itl, ..Slo::default() }
}

/// Returns the parameters with the overrides of `SET`, as `TidegateParams::with` reads them.
fn params() -> TidegateParams {
    let params = TidegateParams::default();
    std::env::var("SET").map_or(params, |set| params.with(&set).expect("SET"))
}
