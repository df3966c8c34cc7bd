//! Runs contenders on cells: each policy in the variants that an operator may choose from, each
//! variant on the same draws of the load.

use std::str::FromStr;
use tidegate_sim::{Estimate, Policy, simulate};
use tidegate_types::Tokens;

use crate::cells::{Cell, Set};
use crate::parallel::in_parallel;

/// Token budgets of a step: vLLM's defaults of different versions.
pub const CHUNKS: [u64; 2] = [512, 2048];
/// The best number of prefill engines in hindsight, as for `static:best`.
pub const BEST_CONDITIONAL: &str = "conditional:best";
/// Alternatives without prefix caches.
const ALTERNATIVES: [&str; 6] =
    ["static:best", "interval:5", "xllm", "llumnix:migrate", "tokenscale", "aggregated"];
/// Alternatives on engines with prefix caches.
const REUSE_ALTERNATIVES: [&str; 5] =
    ["static:best", BEST_CONDITIONAL, "dynamo_kv", "cache_aware", "sticky"];

/// Results of one run.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub attainment: f64,
    /// Requests/s that met both targets, over the time of arrivals.
    pub within_targets: f64,
    /// In seconds.
    pub ttft_p99: f64,
    /// In seconds.
    pub tpot_p99: f64,
    /// In seconds.
    pub itl_p99: f64,
    pub hit_rate: Option<f64>,
}

/// A policy on one cell, in the variant with the highest mean attainment.
#[derive(Clone, Debug)]
pub struct Standing {
    pub name: String,
    /// The chosen variant, for example `static:5@2048`.
    pub variant: String,
    /// One entry a draw, in the order of seeds.
    pub draws: Vec<Figures>,
}

impl Standing {
    pub fn attainments(&self) -> Vec<f64> {
        self.draws.iter().map(|draw| draw.attainment).collect()
    }

    pub fn estimate(&self, of: impl Fn(&Figures) -> f64) -> Estimate {
        Estimate::of(&self.draws.iter().map(of).collect::<Vec<f64>>())
    }

    pub fn mean(&self) -> f64 {
        self.estimate(|draw| draw.attainment).mean
    }

    /// Returns the paired difference in attainment, this minus `other`, in points.
    pub fn ahead_of(&self, other: &Standing) -> Estimate {
        let pairs = self.attainments().into_iter().zip(other.attainments());
        Estimate::paired(pairs).scaled(100.0)
    }
}

/// Returns the element with the highest mean attainment, the first of equal ones.
pub fn best<S: std::borrow::Borrow<Standing>>(all: impl Iterator<Item = S>) -> Option<S> {
    all.reduce(
        |best, other| if other.borrow().mean() > best.borrow().mean() { other } else { best },
    )
}

/// Returns the names of the alternatives to judge on a cell.
pub fn alternatives(cell: &Cell, chosen: &[String]) -> Vec<String> {
    let all: &[&str] = match cell.set {
        Set::Tuning | Set::HeldOut => &ALTERNATIVES,
        Set::Reuse => &REUSE_ALTERNATIVES,
    };
    let known = chosen.iter().filter(|name| *name != "tidegate").cloned();
    if chosen.is_empty() {
        all.iter().map(|name| (*name).to_owned()).collect()
    } else {
        known.collect()
    }
}

/// Returns the policies that a name stands for on a fleet of this size.
fn variants(name: &str, engines: usize) -> Vec<Policy> {
    match name {
        "static:best" => (1..engines).map(Policy::Static).collect(),
        BEST_CONDITIONAL => (1..engines).map(Policy::Conditional).collect(),
        _ => Policy::from_str(name).into_iter().filter(|policy| policy.runs_on(engines)).collect(),
    }
}

/// Returns the token budgets of a step that an operator may choose from.
fn budgets(cell: &Cell, chunks: &[u64]) -> Vec<u64> {
    if cell.own_chunk { vec![cell.config.profile.chunk.get()] } else { chunks.to_vec() }
}

struct SeededRun<'a> {
    cell: &'a Cell,
    policy: Policy,
    chunk: u64,
    seed: u64,
}

/// Runs each cell's contenders on `seeds` draws. The result is parallel to `contests`.
pub fn contest(
    label: &str,
    contests: &[(Cell, Vec<String>)],
    chunks: &[u64],
    seeds: u64,
) -> Vec<Vec<Standing>> {
    let mut runs = Vec::new();
    for (cell, names) in contests {
        for name in names {
            for policy in variants(name, cell.config.engines) {
                for chunk in budgets(cell, chunks) {
                    runs.extend((0..seeds).map(|seed| SeededRun { cell, policy, chunk, seed }));
                }
            }
        }
    }
    let figures =
        in_parallel(Some(label), &runs, |run| figures(run.cell, run.policy, run.chunk, run.seed));
    let mut variants_run = runs.chunks(seeds as usize).zip(figures.chunks(seeds as usize));
    let mut standing = |cell: &Cell, name: &String| {
        let count = variants(name, cell.config.engines).len() * budgets(cell, chunks).len();
        let all = variants_run.by_ref().take(count).map(|(runs, figures)| Standing {
            name: name.clone(),
            variant: runs
                .first()
                .map(|run| format!("{}@{}", run.policy, run.chunk))
                .unwrap_or_default(),
            draws: figures.to_vec(),
        });
        best(all)
    };
    contests
        .iter()
        .map(|(cell, names)| names.iter().filter_map(|name| standing(cell, name)).collect())
        .collect()
}

/// Simulates one draw of a cell.
pub fn figures(cell: &Cell, policy: Policy, chunk: u64, seed: u64) -> Figures {
    let mut config = cell.config;
    config.profile = config.profile.with_chunk(Tokens(chunk));
    config.second = config.second.map(|second| second.with_chunk(Tokens(chunk)));
    let trace = cell.source.draw(seed).at_rate(cell.rate);
    let report = simulate(&trace, cell.rate, policy, &config).report;
    let seconds = trace.end().get().max(1.0);
    Figures {
        attainment: report.attainment,
        within_targets: report.attainment * report.requests as f64 / seconds,
        ttft_p99: report.ttft_p99,
        tpot_p99: report.tpot_p99,
        itl_p99: report.itl_p99,
        hit_rate: report.hit_rate,
    }
}
