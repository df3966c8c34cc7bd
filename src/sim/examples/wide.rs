//! Compares tidegate with the best alternative over many cells.
//!
//! - `wide FILE alternatives [NAME]` stores in FILE, one line per cell, the result of the best
//!   alternative. Cells already in the file are not simulated again.
//! - `wide FILE tidegate [NAME [PART/PARTS]]` compares tidegate with those results; prints each
//!   cell in which tidegate is lower, and a count.
//!
//! NAME selects traces by name; `all` selects every trace. `OWN=FILE,FILE…` replaces the project's
//! traces; each is named after its file.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "an example reads traces, keeps a file, and prints"
)]

use std::collections::BTreeMap;
use std::io::Write;
use tidegate_sim::{Outcome, Policy, Profile, SimConfig, Trace, simulate};
use tidegate_types::{Seconds, Slo, Tokens};

const TRACES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/traces/");
const TTFTS: [f64; 3] = [0.5, 1.0, 5.0];
const TPOTS: [f64; 3] = [0.02, 0.03, 0.05];
const CHUNKS: [u64; 2] = [512, 2048];

/// Best attainment and the policy that reached it.
type Best = (f64, String);

/// Trace at a rate on a fleet, judged by nine pairs of targets.
struct Load {
    name: String,
    trace: Trace,
    rate: f64,
    engines: usize,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (path, what) = (&args[0], args[1].as_str());
    let argument = args.get(2).map_or("all", String::as_str);
    let (part, parts) = args.get(3).and_then(|p| p.split_once('/')).unwrap_or(("1", "1"));
    let (part, parts): (usize, usize) =
        (part.parse().expect("part"), parts.parse().expect("parts"));
    let mut known = read_known(path);
    let (mut cells, mut worse, mut gained) = (0, 0, 0.0);
    for (name, trace) in traces() {
        for (n, engines) in [4, 8, 16, 64].into_iter().enumerate() {
            for (m, rate) in [0.5, 1.0, 1.5, 2.0].into_iter().enumerate() {
                if ![name.as_str(), "all"].contains(&argument) || (n + m) % parts != part - 1 {
                    continue;
                }
                // Equal load per engine for every fleet size.
                let rate = rate * engines as f64 / 8.0;
                let load =
                    Load { name: name.clone(), trace: trace.clone().at_rate(rate), rate, engines };
                let missing = |slo: &Slo| !known.contains_key(&load.cell(slo));
                if what == "alternatives" {
                    if slos().iter().any(missing) {
                        keep(path, &load, &load.alternatives());
                    }
                    continue;
                }
                for slo in slos() {
                    let Some((theirs, by)) = known.remove(&load.cell(&slo)) else { continue };
                    let (ours, chunk) = load.tidegate(slo);
                    cells += 1;
                    gained += ours - theirs;
                    let below = ours < theirs - 0.005;
                    worse += usize::from(below);
                    if ours < theirs {
                        let mark = if below { " *" } else { "" };
                        let cell = load.cell(&slo).replace('\t', " ");
                        println!("{cell}: {ours:.4} @{chunk}, {by} {theirs:.4}{mark}");
                    }
                }
            }
        }
    }
    if cells > 0 {
        let mean = gained / f64::from(cells);
        println!("{cells} cells: {worse} more than half a point below, {mean:+.4} in the mean");
    }
}

fn traces() -> Vec<(String, Trace)> {
    let parse = |path: &str| {
        let text = std::fs::read_to_string(path).expect("trace");
        Trace::parse(&text).expect("trace").cap_prompt(Tokens(32_000))
    };
    if let Ok(own) = std::env::var("OWN") {
        let stem = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        return own.split(',').map(|path| (stem(path), parse(path))).collect();
    }
    let read = |name: &str| parse(&format!("{TRACES}{name}"));
    let code = read("azure_llm_2023_code.first30min.csv");
    let conv = read("azure_llm_2023_conv.first30min.csv");
    [
        ("r60", read("regime_shift_60s.jsonl")),
        ("r300", read("regime_shift_300s.jsonl")),
        ("mooncake", read("mooncake_conversation.first10min.jsonl")),
        ("both", Trace::merge([conv.clone(), code.clone()])),
        ("code", code),
        ("conv", conv),
    ]
    .map(|(name, trace)| (name.to_owned(), trace))
    .into()
}

fn slos() -> Vec<Slo> {
    let slo = |ttft, tpot| Slo { ttft: Seconds(ttft), tpot: Seconds(tpot), itl: None };
    TTFTS.iter().flat_map(|ttft| TPOTS.iter().map(move |tpot| slo(*ttft, *tpot))).collect()
}

impl Load {
    fn cell(&self, slo: &Slo) -> String {
        let Load { name, rate, engines, .. } = self;
        format!("{name}\tx{rate}\t{engines} engines\t{}\t{}", slo.ttft, slo.tpot)
    }

    fn outcomes(&self, policy: Policy, chunk: u64, slo: Slo) -> Vec<Outcome> {
        let profile = Profile::default().with_chunk(Tokens(chunk));
        let config = SimConfig { profile, engines: self.engines, slo, ..SimConfig::default() };
        simulate(&self.trace, self.rate, policy, &config).outcomes
    }

    fn tidegate(&self, slo: Slo) -> (f64, u64) {
        let of = |chunk| (attainment(&self.outcomes(Policy::Tidegate, chunk, slo), &slo), chunk);
        CHUNKS.map(of).into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).expect("two chunks")
    }

    /// Returns the best alternative for each pair of targets. Only the controller reads a target,
    /// the TPOT.
    fn alternatives(&self) -> Vec<(Slo, Best)> {
        let mut best: Vec<(Slo, Best)> =
            slos().into_iter().map(|slo| (slo, Best::default())).collect();
        let mut judge = |policy: Policy, tpot: Option<f64>| {
            for chunk in CHUNKS {
                let slo = Slo { tpot: Seconds(tpot.unwrap_or(TPOTS[0])), ..Slo::default() };
                let outcomes = self.outcomes(policy, chunk, slo);
                for (slo, best) in &mut best {
                    let reached = attainment(&outcomes, slo);
                    if reached > best.0 && tpot.is_none_or(|tpot| slo.tpot.get() == tpot) {
                        *best = (reached, format!("{policy}@{chunk}"));
                    }
                }
            }
        };
        // In large fleets every eighth split.
        for prefills in (1..self.engines).step_by((self.engines / 8).max(1)) {
            judge(Policy::Static(prefills), None);
        }
        judge(Policy::Aggregated, None);
        for tpot in TPOTS {
            judge(Policy::Interval { every: 5000, restart: 0 }, Some(tpot));
        }
        best
    }
}

fn attainment(outcomes: &[Outcome], slo: &Slo) -> f64 {
    let met = outcomes.iter().filter(|o| o.meets(slo)).count();
    met as f64 / outcomes.len().max(1) as f64
}

/// Reads the stored results by cell; empty if the file does not exist.
fn read_known(path: &str) -> BTreeMap<String, Best> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let (rest, by) = line.rsplit_once('\t')?;
        let (cell, reached) = rest.rsplit_once('\t')?;
        Some((cell.to_owned(), (reached.parse().ok()?, by.to_owned())))
    };
    text.lines().filter_map(line).collect()
}

fn keep(path: &str, load: &Load, best: &[(Slo, Best)]) {
    let line =
        |(slo, (reached, by)): &(Slo, Best)| format!("{}\t{reached}\t{by}\n", load.cell(slo));
    let lines: String = best.iter().map(line).collect();
    let mut file = std::fs::File::options();
    let mut file = file.append(true).create(true).open(path).expect("a file for the alternatives");
    file.write_all(lines.as_bytes()).expect("the alternatives are kept");
}
