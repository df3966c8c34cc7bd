//! Sections `ablation` and `disturbances`: the parameters in force against one change at a time.

use std::fmt::Write;
use tidegate_sim::{Disturbance, Estimate};

use crate::arguments::Args;
use crate::cells::{Cell, Set, cells};
use crate::contest::{Standing, contest};
use crate::saved::mean_of_cells;

/// Token budget of a step in both sections.
const CHUNK: [u64; 1] = [2048];

/// Overrides of `TidegateParams::with`, each with the rule that it removes or the constant that it
/// changes.
const ROWS: &[(&str, &str)] = &[
    ("flips=0", "roles never change: 4P4D"),
    ("flips=0+start=5", "roles never change: 5P3D"),
    ("plan_interval=5", "plan every 5 s"),
    ("spill=0", "no prefill beside streams"),
    ("late_class_share=0", "no share for the late class"),
    ("refuse_late=1", "late requests are refused"),
    ("trunk_reservation_share=0", "no trunk reservation"),
    ("colocate_below=0", "short prompts are split too"),
    ("prefill_backlog_max=0.025", "prefill backlog bound 25 ms"),
    ("prefill_backlog_max=0.15", "prefill backlog bound 150 ms"),
    ("demand_window=5", "demand window 5 s"),
    ("demand_window=30", "demand window 30 s"),
    ("queue_deadline=10", "queue deadline 10 s"),
    ("tells_output=1", "output lengths known"),
];

/// Differences to a baseline: per cell, per draw, in points.
type Differences = Vec<Vec<f64>>;

pub fn run(args: &Args) -> Result<String, String> {
    let mut cells = cells(args)?;
    cells.retain(|cell| cell.set == Set::Tuning || !args.short);
    if cells.is_empty() {
        return Err("the short ablation has tuning cells only".to_owned());
    }
    let rows: Vec<(&str, &str)> = match args.ablate.as_slice() {
        [] => ROWS.to_vec(),
        own => own.iter().map(|row| (row.as_str(), "")).collect(),
    };
    let mut contests: Vec<(Cell, Vec<String>)> = Vec::new();
    let only = || vec!["tidegate".to_owned()];
    contests.extend(cells.iter().map(|cell| (cell.clone(), only())));
    for (row, _) in &rows {
        for cell in &cells {
            let mut cell = cell.clone();
            cell.config.tidegate = args.params.with(row).map_err(|error| error.to_string())?;
            contests.push((cell, only()));
        }
    }
    let results = contest("ablation", &contests, &CHUNK, args.fewer_seeds());
    Ok(ablation_table(&cells, &rows, &results))
}

/// Returns the table; `results` has the cells in force first, then those of each row.
fn ablation_table(cells: &[Cell], rows: &[(&str, &str)], results: &[Vec<Standing>]) -> String {
    let mut results = results.chunks(cells.len());
    let baseline = results.next().unwrap_or_default();
    let tuning = || cells.iter().zip(baseline).filter(|(cell, _)| cell.set == Set::Tuning);
    let names: Vec<&str> = tuning().map(|(cell, _)| cell.name.as_str()).collect();
    let reached: Vec<String> = tuning()
        .filter_map(|(_, standings)| Some(format!("{:.3}", standings.first()?.mean())))
        .collect();
    let mut text = format!(
        "| override | rule or constant | {} | mean of these | mean of held-out | lowest held-out |\n\
         | --- | --- |{} --- | --- | --- |\n\
         | none | **in force**: attainment | {} | | | |\n",
        names.join(" | "),
        " --- |".repeat(names.len()),
        reached.join(" | "),
    );
    for ((row, what), result) in rows.iter().zip(results) {
        let of = |tuning: bool| -> Differences {
            let cells = cells.iter().zip(baseline).zip(result);
            cells
                .filter(|((cell, _), _)| (cell.set == Set::Tuning) == tuning)
                .filter_map(|((_, before), after)| {
                    Some(differences(after.first()?, before.first()?))
                })
                .collect()
        };
        let (tuning, held_out) = (of(true), of(false));
        let each = tuning.iter().map(|cell| format!("{:+.2}", Estimate::of(cell)));
        let mean = |differences: &Differences| match differences.is_empty() {
            true => String::new(),
            false => format!("{:+.2}", mean_of_cells(differences)),
        };
        writeln!(
            text,
            "| `{row}` | {what} | {} | {} | {} | {} |",
            each.collect::<Vec<String>>().join(" | "),
            mean(&tuning),
            mean(&held_out),
            lowest(&held_out),
        )
        .ok();
    }
    text
}

/// Tidegate and the best fixed split under each single disturbance, on the tuning cells.
pub fn disturbances(args: &Args) -> Result<String, String> {
    let mut cells = cells(args)?;
    cells.retain(|cell| cell.set == Set::Tuning);
    if cells.is_empty() {
        return Err("the section disturbances has tuning cells only".to_owned());
    }
    let names: Vec<&str> =
        std::iter::once("none").chain(Disturbance::SINGLE.iter().copied()).collect();
    let mut contests: Vec<(Cell, Vec<String>)> = Vec::new();
    for name in &names {
        let disturbance: Disturbance = name.parse().map_err(|e| format!("{e}"))?;
        for cell in &cells {
            let mut cell = cell.clone();
            cell.config.disturbance = disturbance;
            contests.push((cell, vec!["tidegate".to_owned(), "static:best".to_owned()]));
        }
    }
    let results = contest("disturbances", &contests, &CHUNK, args.fewer_seeds());
    let results: Vec<&[Vec<Standing>]> = results.chunks(cells.len()).collect();
    Ok(disturbances_table(&names, &results))
}

/// Returns the table; the first results are those of the undisturbed cells.
fn disturbances_table(names: &[&str], results: &[&[Vec<Standing>]]) -> String {
    let undisturbed = results.first().copied().unwrap_or_default();
    let mut text = String::from(
        "| disturbance | tidegate, mean of cells | to undisturbed, points | lowest cell | best fixed split | tidegate − split, points | lowest cell |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for (name, result) in names.iter().zip(results) {
        let attainments = |index: usize| -> Vec<Vec<f64>> {
            result.iter().filter_map(|cell| Some(cell.get(index)?.attainments())).collect()
        };
        let loss: Differences = result
            .iter()
            .zip(undisturbed)
            .filter_map(|(now, before)| Some(differences(now.first()?, before.first()?)))
            .collect();
        let ahead: Differences = result
            .iter()
            .filter_map(|cell| Some(differences(cell.first()?, cell.get(1)?)))
            .collect();
        writeln!(
            text,
            "| {name} | {:.3} | {:+.2} | {} | {:.3} | {:+.2} | {} |",
            mean_of_cells(&attainments(0)),
            mean_of_cells(&loss),
            lowest(&loss),
            mean_of_cells(&attainments(1)),
            mean_of_cells(&ahead),
            lowest(&ahead),
        )
        .ok();
    }
    text
}

/// Returns the differences in attainment by draw, `after` minus `before`, in points.
fn differences(after: &Standing, before: &Standing) -> Vec<f64> {
    let pairs = after.attainments().into_iter().zip(before.attainments());
    pairs.map(|(after, before)| (after - before) * 100.0).collect()
}

fn lowest(cells: &Differences) -> String {
    let means = cells.iter().map(|cell| Estimate::of(cell).mean);
    means.min_by(f64::total_cmp).map_or(String::new(), |lowest| format!("{lowest:+.2}"))
}
