//! The cells of engine_model.md's table, by every policy named on the command line.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "an example reads traces and a clock, and prints"
)]

use tidegate_sim::{Policy, Profile, SimConfig, Trace, simulate};
use tidegate_terms::Tokens;

const TRACES: &str = "/work/shared/traces/";

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
        ("regime60", &r60, [0.8, 1.0, 1.2].as_slice()),
        ("regime300", &r300, &[0.8, 1.0, 1.2]),
        ("code", &code, &[1.0, 2.0]),
        ("both", &both, &[1.0, 2.0]),
    ];
    for (name, trace, rates) in cells {
        for rate in rates {
            let cell = format!("{name}x{rate}");
            if !cell.contains(&only) {
                continue;
            }
            print!("{cell:14}");
            for policy in &policies {
                for chunk in [512, 2048] {
                    let profile = Profile::default().with_chunk(Tokens(chunk));
                    let config = SimConfig { profile, ..SimConfig::default() };
                    let began = std::time::Instant::now();
                    let run = simulate(&trace.clone().at_rate(*rate), *rate, *policy, &config);
                    let r = &run.report;
                    print!(
                        "  {policy}@{chunk} {:.3} (t{:.3} p{:.3} f{}{}) {:.1}s",
                        r.attainment,
                        r.ttft_attainment,
                        r.tpot_attainment,
                        r.flips,
                        run.split.map_or(String::new(), |k| format!(" {k}P")),
                        began.elapsed().as_secs_f64(),
                    );
                }
            }
            println!();
        }
    }
}
