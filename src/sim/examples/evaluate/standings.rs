//! Section `cells`: every policy on every cell, tuning and held-out cells apart.

use std::fmt::Write;
use tidegate_sim::Estimate;

use crate::arguments::Args;
use crate::cells::{Cell, Set, cells};
use crate::contest::{CHUNKS, Figures, Standing, alternatives, best, contest};
use crate::saved;

/// A cell and its contenders; tidegate is the first.
struct Judged {
    cell: Cell,
    standings: Vec<Standing>,
}

impl Judged {
    fn tidegate(&self) -> Option<&Standing> {
        self.standings.first()
    }

    fn best_alternative(&self) -> Option<&Standing> {
        best(self.standings.get(1..)?.iter())
    }
}

pub fn run(args: &Args) -> Result<String, String> {
    let contests: Vec<(Cell, Vec<String>)> = cells(args)?
        .into_iter()
        .map(|cell| {
            let mut names = vec!["tidegate".to_owned()];
            names.extend(alternatives(&cell, &args.policies));
            (cell, names)
        })
        .collect();
    let chunks = if args.short { &CHUNKS[1..] } else { &CHUNKS[..] };
    let results = contest("cells", &contests, chunks, args.seeds);
    let judged: Vec<Judged> = contests
        .into_iter()
        .zip(results)
        .map(|((cell, _), standings)| Judged { cell, standings })
        .collect();
    let rows: Vec<(&Cell, &Standing)> =
        judged.iter().flat_map(|j| j.standings.iter().map(|s| (&j.cell, s))).collect();
    if let Some(path) = &args.save {
        saved::write(path, &rows)?;
    }
    let mut text = String::new();
    for (set, title) in [
        (Set::Tuning, "Tuning cells"),
        (Set::HeldOut, "Held-out cells"),
        (Set::Reuse, "Held-out cells with prefix caches"),
    ] {
        let of_set: Vec<&Judged> = judged.iter().filter(|judged| judged.cell.set == set).collect();
        if !of_set.is_empty() {
            writeln!(text, "**{title}.**\n\n{}\n{}", versus(&of_set), attainments(&of_set)).ok();
        }
    }
    if let Some(path) = &args.against {
        let tidegate: Vec<(&Cell, &Standing)> =
            judged.iter().filter_map(|j| Some((&j.cell, j.tidegate()?))).collect();
        text.push_str(&saved::compare(path, &tidegate)?);
    }
    Ok(text)
}

/// Returns the table of tidegate beside the best alternative of each cell.
fn versus(judged: &[&Judged]) -> String {
    let mut text = String::from(
        "| cell | tidegate | best alternative | difference, points | requests/s within targets | TTFT p99, s | TPOT p99, ms | ITL p99, ms |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut differences = Vec::new();
    for judged in judged {
        let (Some(ours), Some(theirs)) = (judged.tidegate(), judged.best_alternative()) else {
            continue;
        };
        differences.push(ours.ahead_of(theirs).mean);
        let both = |digits: usize, of: fn(&Figures) -> f64| {
            let mean = |standing: &Standing| standing.estimate(of).mean;
            format!("{:.digits$}, {:.digits$}", mean(ours), mean(theirs))
        };
        writeln!(
            text,
            "| {} | {:.3} | {} {:.3} | {:+.2} | {} | {} | {} | {} |",
            judged.cell.name,
            ours.estimate(|draw| draw.attainment),
            theirs.variant,
            theirs.estimate(|draw| draw.attainment),
            ours.ahead_of(theirs),
            both(2, |draw| draw.within_targets),
            both(1, |draw| draw.ttft_p99),
            both(0, |draw| draw.tpot_p99 * 1e3),
            both(0, |draw| draw.itl_p99 * 1e3),
        )
        .ok();
    }
    if differences.is_empty() {
        return String::new();
    }
    let lowest = differences.iter().copied().fold(f64::INFINITY, f64::min);
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    writeln!(
        text,
        "\nDifference: {mean:+.2} points in the mean of cells, {lowest:+.2} at the lowest."
    )
    .ok();
    text
}

/// Returns the table of every policy's attainment, with the hit rate of prefix caches where there
/// are any.
fn attainments(judged: &[&Judged]) -> String {
    let Some(first) = judged.first() else { return String::new() };
    let names: Vec<&str> = first.standings.iter().map(|s| s.name.as_str()).collect();
    let mut text =
        format!("| cell | {} |\n| --- |{}\n", names.join(" | "), " --- |".repeat(names.len()));
    for judged in judged {
        let cell = |standing: &Standing| {
            let attainment = standing.estimate(|draw| draw.attainment);
            let hits: Vec<f64> = standing.draws.iter().filter_map(|draw| draw.hit_rate).collect();
            match hits.is_empty() {
                true => format!("{attainment:.3}"),
                false => format!("{attainment:.3}; hits {:.2}", Estimate::of(&hits).mean),
            }
        };
        let row: Vec<String> = judged.standings.iter().map(cell).collect();
        writeln!(text, "| {} | {} |", judged.cell.name, row.join(" | ")).ok();
    }
    text
}
