//! Section `headline`: goodput, the highest request rate at 90 % attainment, and the fewest engines for 95 %, tidegate
//! beside the best fixed split in hindsight. Each draw has its own search, so that ratios are
//! paired.

use std::fmt::Write;
use tidegate_sim::{Estimate, Policy, SimConfig};
use tidegate_types::{Seconds, Slo};

use crate::arguments::Args;
use crate::cells::{Cell, Set, Source, held_out_sources, tuning_sources};
use crate::contest::figures;
use crate::parallel::in_parallel;

/// Attainment at the request rate that is searched for.
const AT_RATE: f64 = 0.90;
/// Attainment that the fewest engines reach.
const WITH_ENGINES: f64 = 0.95;
/// Bisections of a factor of two in the rate: to 1.1 %.
const BISECTIONS: u32 = 6;
/// Factors on the rate of a trace between which the search runs.
const RATES: (f64, f64) = (1.0 / 32.0, 32.0);
/// Most engines.
const ENGINES: usize = 24;
/// Token budget of a step.
const CHUNK: u64 = 2048;

#[derive(Clone, Copy, PartialEq)]
enum Contestant {
    Tidegate,
    BestSplit,
}

struct Search {
    source: usize,
    side: Contestant,
    seed: u64,
}

/// Results of the searches of one draw; `None`: not reached within the range.
struct Found {
    rate: Option<f64>,
    engines: Option<usize>,
}

/// Draws of this section: each needs two searches.
pub fn seeds(args: &Args) -> u64 {
    if args.short { args.seeds.min(2) } else { args.fewer_seeds().min(10) }
}

pub fn run(args: &Args) -> Result<String, String> {
    let mut cells = Vec::new();
    for (set, sources) in [(Set::Tuning, tuning_sources()?), (Set::HeldOut, held_out_sources()?)] {
        for (name, source) in sources {
            let rate = engines_rate(&source, &name);
            let mut config = SimConfig { tidegate: args.params, ..SimConfig::default() };
            let mut name = name;
            if name == "mooncake" {
                // Prefills of its long prompts take more than 1 s on an idle engine.
                config.slo = Slo { ttft: Seconds(5.0), tpot: Seconds(0.05), ..Slo::default() };
                name = "mooncake, TTFT 5 s, TPOT 50 ms".to_owned();
            }
            cells.push(Cell { name, set, source, rate, config, own_chunk: false });
        }
    }
    cells.retain(|cell| cell.name.contains(&args.only) && cell.set.as_str().contains(&args.set_of));
    let seeds = seeds(args);
    let mut searches = Vec::new();
    for source in 0..cells.len() {
        for side in [Contestant::Tidegate, Contestant::BestSplit] {
            searches.extend((0..seeds).map(|seed| Search { source, side, seed }));
        }
    }
    let found = in_parallel(Some("headline"), &searches, |search| search.run(&cells));
    let found: Vec<&[Found]> = found.chunks(seeds as usize).collect();
    let mut text = String::from(
        "| trace | set | goodput, × the trace's rate: tidegate | best fixed split | ratio | engines for .95, at rate | tidegate | best fixed split | fewer, % |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let (mut ratios, mut savings) = (Vec::new(), Vec::new());
    for (cell, found) in cells.iter().zip(found.chunks(2)) {
        let [ours, theirs] = found else { continue };
        let ratio = paired(ours, theirs, |ours, theirs| Some(ours.rate? / theirs.rate?));
        let fewer = paired(ours, theirs, |ours, theirs| {
            Some(100.0 * (1.0 - ours.engines? as f64 / theirs.engines? as f64))
        });
        let rate = |found: &[Found]| estimate(found, |found| found.rate);
        let engines = |found: &[Found]| estimate(found, |found| found.engines.map(|n| n as f64));
        writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {ratio:.2} | ×{} | {:.1} | {:.1} | {fewer:.0} |",
            cell.name,
            cell.set.as_str(),
            rate(ours),
            rate(theirs),
            cell.rate,
            engines(ours),
            engines(theirs),
        )
        .ok();
        ratios.push(ratio.mean);
        savings.push(fewer.mean);
    }
    // A trace on which one side does not reach the attainment has no ratio.
    let mean = |values: &[f64]| {
        let found: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
        Estimate::of(&found).mean
    };
    let (ratio, fewer) = (mean(&ratios), mean(&savings));
    writeln!(text, "| **mean of traces** | | | | **{ratio:.2}** | | | | **{fewer:.0}** |").ok();
    Ok(text)
}

/// The rate at which engines are counted: code and conversations are light at their own.
fn engines_rate(source: &Source, name: &str) -> f64 {
    match source {
        Source::Trace(_) if name.starts_with("co") => 2.0,
        _ => 1.0,
    }
}

/// Returns the estimate over the draws that have a value.
fn estimate(found: &[Found], of: impl Fn(&Found) -> Option<f64>) -> Estimate {
    Estimate::of(&found.iter().filter_map(of).collect::<Vec<f64>>())
}

fn paired(
    ours: &[Found],
    theirs: &[Found],
    of: impl Fn(&Found, &Found) -> Option<f64>,
) -> Estimate {
    let values = ours.iter().zip(theirs).filter_map(|(ours, theirs)| of(ours, theirs));
    Estimate::of(&values.collect::<Vec<f64>>())
}

impl Search {
    fn run(&self, cells: &[Cell]) -> Found {
        let Some(cell) = cells.get(self.source) else { return Found { rate: None, engines: None } };
        Found { rate: self.highest_rate(cell), engines: self.fewest_engines(cell) }
    }

    /// Returns whether the policy, or any fixed split, reaches an attainment. The split that reached
    /// it last is tried first and kept in `split`.
    fn reaches(&self, cell: &Cell, attainment: f64, split: &mut usize) -> bool {
        let reaches = |policy| figures(cell, policy, CHUNK, self.seed).attainment >= attainment;
        match self.side {
            Contestant::Tidegate => reaches(Policy::Tidegate),
            Contestant::BestSplit => {
                let mut splits: Vec<usize> = (1..cell.config.engines).collect();
                splits.sort_by_key(|prefills| prefills.abs_diff(*split));
                let found = splits.into_iter().find(|prefills| reaches(Policy::Static(*prefills)));
                *split = found.unwrap_or(*split);
                found.is_some()
            }
        }
    }

    /// Doubles or halves the rate until it brackets the attainment, then bisects.
    fn highest_rate(&self, cell: &Cell) -> Option<f64> {
        let mut split = cell.config.engines / 2;
        let mut at = |rate| self.reaches(&Cell { rate, ..cell.clone() }, AT_RATE, &mut split);
        let (mut low, mut high) = (1.0, 1.0);
        if at(low) {
            high = 2.0;
            while at(high) {
                low = high;
                high *= 2.0;
                if high > RATES.1 {
                    return None;
                }
            }
        } else {
            low = 0.5;
            while !at(low) {
                high = low;
                low /= 2.0;
                if low < RATES.0 {
                    return None;
                }
            }
        }
        for _ in 0..BISECTIONS {
            let middle = f64::sqrt(low * high);
            if at(middle) { low = middle } else { high = middle }
        }
        Some(low)
    }

    fn fewest_engines(&self, cell: &Cell) -> Option<usize> {
        let mut split = cell.config.engines / 2;
        let mut with = |engines| {
            let mut cell = cell.clone();
            cell.config.engines = engines;
            self.reaches(&cell, WITH_ENGINES, &mut split)
        };
        // 1 engine has no split.
        let (mut too_few, mut enough) = (0, ENGINES);
        if !with(enough) {
            return None;
        }
        while enough - too_few > 1 {
            let middle = too_few + (enough - too_few) / 2;
            if with(middle) { enough = middle } else { too_few = middle }
        }
        Some(enough)
    }
}
