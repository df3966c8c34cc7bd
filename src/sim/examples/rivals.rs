//! Fits and comparisons with other systems' own figures.
//!
//! - `rivals fit`: fits the profile `qwen3-32b-h20` to Llumnix's two static curves by grid search,
//!   and prints the best points with their distances to those and to the adaptive curves
//!   (t_tok, t_seq, t_weights in ms, KV tokens).
//! - `rivals llumnix [POLICY,…]`: attainment in Llumnix's cell at its five rates.
//! - `rivals dynamo FILE [POLICY,…]`: attainment on a trace for Dynamo's mocker.
//! - `rivals headline NAME [POLICY,…]`: the highest rate of a trace of benches/traces at which a
//!   policy attains 90 %, and its factor to the best fixed split.
//!
//! Environment: `T_TOK`, `T_SEQ`, `T_WEIGHTS` (ms), `KV` (tokens) and `REQUESTS` replace constants of
//! the Llumnix cell; `FIT_T_TOK` and so on are the comma-separated grid of `fit`.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example reads traces and the environment, starts threads, and prints"
)]

#[path = "evaluate/parallel.rs"]
mod parallel;

use parallel::in_parallel;
use tidegate_sim::{Policy, Profile, SimConfig, Trace, simulate};
use tidegate_types::{Seconds, Slo, Tokens};

const TRACES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/traces/");
const CONVERSATION: &str = "azure_llm_2023_conv.first30min.csv";
/// Request rates of Llumnix's plot, in requests/s.
const RATES: [f64; 5] = [7.5, 8.0, 8.5, 9.0, 9.5];
/// Attainment of 6P2D and 5P3D in that plot, ± .01.
const FIXED: [(Policy, [f64; 5]); 2] = [
    (Policy::Static(6), [0.92, 0.80, 0.58, 0.31, 0.15]),
    (Policy::Static(5), [0.64, 0.48, 0.21, 0.09, 0.06]),
];
/// Attainment of Llumnix without and with migration in that plot.
const ADAPTIVE: [(Policy, [f64; 5]); 2] = [
    (Policy::Llumnix { migrates: false }, [1.0, 0.99, 0.77, 0.56, 0.40]),
    (Policy::Llumnix { migrates: true }, [1.0, 0.995, 0.91, 0.63, 0.44]),
];
/// Headline: attainment that a rate must keep.
const KEPT: f64 = 0.9;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let argument = |at: usize| args.get(at).map(String::as_str);
    let policies = |at: usize, default: &str| -> Vec<Policy> {
        let arguments = argument(at).unwrap_or(default);
        arguments.split(',').map(|policy| policy.parse().expect("a policy")).collect()
    };
    match argument(0) {
        Some("fit") => fit(),
        Some("llumnix") => {
            let all = "static:6,static:5,static:best,tidegate,llumnix,llumnix:migrate,xllm";
            llumnix(&policies(1, all));
        }
        Some("dynamo") => {
            let all = "static:6,static:5,static:4,static:3,static:best,tidegate";
            dynamo(argument(1).expect("a trace"), &policies(2, all));
        }
        Some("headline") => {
            let all = "static:best,tidegate,llumnix,llumnix:migrate,xllm,tokenscale";
            headline(argument(1).expect("a trace"), &policies(2, all));
        }
        other => panic!("{other:?}: fit, llumnix, dynamo or headline"),
    }
}

fn read(path: &str) -> Trace {
    let text = std::fs::read_to_string(path).expect("a trace");
    Trace::parse(&text).expect("a trace").cap_prompt(Tokens(32_000))
}

fn number(name: &str, default: f64) -> f64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Fleet, targets and load of Llumnix's plot: the lengths of the first requests of the conversation
/// trace, in Poisson arrivals.
struct LlumnixCell {
    profile: Profile,
    /// Draws of the arrivals, at one request per second.
    draws: Vec<Trace>,
}

/// Requests of a run. With more of them the curves are steeper: an overloaded fleet has time to fall
/// behind. Fitted together with the profile.
const REQUESTS: usize = 1500;
/// Draws that an attainment is the mean of.
const DRAWS: u64 = 4;

impl LlumnixCell {
    fn new(profile: Profile) -> LlumnixCell {
        let mut trace = read(&format!("{TRACES}{CONVERSATION}"));
        trace.arrivals.truncate(number("REQUESTS", REQUESTS as f64) as usize);
        let draws = (1..=DRAWS).map(|seed| trace.clone().poisson(seed)).collect();
        LlumnixCell { profile, draws }
    }

    /// Mean attainment, TTFT attainment and TPOT attainment at each rate.
    fn attainments(&self, policy: Policy) -> Vec<[f64; 3]> {
        let slo = Slo { ttft: Seconds(6.0), tpot: Seconds(0.05), itl: None };
        let config = SimConfig { profile: self.profile, slo, ..SimConfig::default() };
        in_parallel(None, &RATES, |rate| {
            let of = |draw: &Trace| {
                let trace = draw.clone().at_rate(*rate);
                let report = simulate(&trace, *rate, policy, &config).report;
                [report.attainment, report.ttft_attainment, report.tpot_attainment]
            };
            let all: Vec<[f64; 3]> = self.draws.iter().map(of).collect();
            [0, 1, 2].map(|of| all.iter().map(|one| one[of]).sum::<f64>() / all.len() as f64)
        })
    }

    /// Root mean square distance to plotted curves.
    fn error(&self, curves: &[(Policy, [f64; 5])]) -> f64 {
        let squares = curves.iter().flat_map(|(policy, plotted)| {
            let got = self.attainments(*policy);
            got.into_iter().zip(*plotted).map(|([both, ..], plotted)| (both - plotted).powi(2))
        });
        (squares.sum::<f64>() / (5 * curves.len()) as f64).sqrt()
    }
}

/// The profile with the constants of the environment.
fn qwen() -> Profile {
    let profile = Profile::named("qwen3-32b-h20").expect("the profile");
    with(
        profile,
        number("T_TOK", profile.t_tok.as_millis()),
        number("T_SEQ", profile.t_seq.as_millis()),
        number("T_WEIGHTS", profile.t_weights.as_millis()),
        number("KV", profile.kv_capacity.as_f64()),
    )
}

/// Replaces the fitted constants: milliseconds, and KV tokens. Attention runs at the efficiency of
/// the other prefill compute.
fn with(profile: Profile, t_tok: f64, t_seq: f64, t_weights: f64, kv: f64) -> Profile {
    let efficiency = PEAK_PER_TOKEN.as_millis() / t_tok;
    Profile {
        t_tok: Seconds::from_millis(t_tok),
        t_seq: Seconds::from_millis(t_seq),
        t_weights: Seconds::from_millis(t_weights),
        t_att: Seconds(PEAK_PER_PAIR.get() / efficiency),
        kv_capacity: Tokens(kv as u64),
        ..profile
    }
}

/// Compute of one token at the H20's peak: 2 × 32.8e9 / 148e12.
const PEAK_PER_TOKEN: Seconds = Seconds(0.443e-3);
/// Attention of one pair at the peak: 4 × 64 layers × 64 heads × 128 / 148e12.
const PEAK_PER_PAIR: Seconds = Seconds(14.2e-9);

/// Fits whose distance to the fixed curves is at most this much larger than the least are printed.
const FLAT: f64 = 0.03;

fn fit() {
    let grid = |name: &str, default: &str| -> Vec<f64> {
        let arguments = std::env::var(name).unwrap_or_else(|_| default.to_owned());
        arguments.split(',').map(|value| value.parse().expect("a number")).collect()
    };
    let mut points = Vec::new();
    for t_tok in grid("FIT_T_TOK", "0.5,0.55,0.6,0.65,0.7") {
        for t_seq in grid("FIT_T_SEQ", "0.3,0.6") {
            for t_weights in grid("FIT_T_WEIGHTS", "20.5,25,30") {
                for kv in grid("FIT_KV", "80000,240000") {
                    points.push((t_tok, t_seq, t_weights, kv));
                }
            }
        }
    }
    let profile = Profile::named("qwen3-32b-h20").expect("the profile");
    let mut fitted: Vec<_> = points
        .iter()
        .map(|(t_tok, t_seq, t_weights, kv)| {
            let cell = LlumnixCell::new(with(profile, *t_tok, *t_seq, *t_weights, *kv));
            (cell.error(&FIXED), cell.error(&ADAPTIVE), (t_tok, t_seq, t_weights, kv))
        })
        .collect();
    fitted.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (fixed, adaptive, point) in fitted.iter().filter(|fit| fit.0 <= fitted[0].0 + FLAT) {
        println!("fixed {fixed:.3} adaptive {adaptive:.3}  {point:?}");
    }
}

fn llumnix(policies: &[Policy]) {
    let cell = LlumnixCell::new(qwen());
    println!("{:18} {RATES:?} requests/s", "policy");
    for policy in policies {
        let row: Vec<String> = cell
            .attainments(*policy)
            .iter()
            .map(|[both, ttft, tpot]| format!("{both:.3} ({ttft:.2} {tpot:.2})"))
            .collect();
        println!("{:18} {}", policy.to_string(), row.join("  "));
    }
}

fn dynamo(path: &str, policies: &[Policy]) {
    let trace = read(path);
    let profile = Profile::named("dynamo-mocker").expect("the profile");
    let slo = Slo { ttft: Seconds(0.5), tpot: Seconds(0.025), itl: None };
    let config = SimConfig { profile, slo, ..SimConfig::default() };
    let runs = in_parallel(None, policies, |policy| simulate(&trace, 1.0, *policy, &config));
    for (policy, run) in policies.iter().zip(runs) {
        let report = &run.report;
        println!(
            "{:18} {:.3} ttft {:.3} tpot {:.3} flips {} split {:?}",
            policy.to_string(),
            report.attainment,
            report.ttft_attainment,
            report.tpot_attainment,
            report.flips,
            run.split,
        );
    }
}

/// Bisects the rate to 1 %.
fn headline(name: &str, policies: &[Policy]) {
    let both = ["azure_llm_2023_code.first30min.csv", CONVERSATION];
    let trace = match name {
        "both" => Trace::merge(both.map(|file| read(&format!("{TRACES}{file}")))),
        file => read(&format!("{TRACES}{file}")),
    };
    let config = SimConfig::default();
    let highest = |policy: Policy| {
        let keeps = |rate: f64| {
            let run = simulate(&trace.clone().at_rate(rate), rate, policy, &config);
            run.report.attainment >= KEPT
        };
        let (mut low, mut high) = (0.05, 0.1);
        while keeps(high) && high < 50.0 {
            (low, high) = (high, high * 1.5);
        }
        while high / low > 1.01 {
            let middle = (low * high).sqrt();
            if keeps(middle) { low = middle } else { high = middle }
        }
        low
    };
    let rates = in_parallel(None, policies, |policy| highest(*policy));
    let reference = policies.iter().position(|policy| *policy == Policy::BestStatic);
    for (policy, rate) in policies.iter().zip(&rates) {
        let factor = reference.map_or(f64::NAN, |at| rate / rates[at]);
        println!("{name} {:18} rate {rate:.3} factor {factor:.2}", policy.to_string());
    }
}
