//! Attainment of each draw in a file, so that two builds are compared on the same draws.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use tidegate_sim::Estimate;

use crate::cells::{Cell, Set};
use crate::contest::Standing;

/// Writes a line for each cell and policy: both names and the attainment of each draw, separated by
/// tabs.
pub fn write(path: &Path, rows: &[(&Cell, &Standing)]) -> Result<(), String> {
    let mut text = String::new();
    for (cell, standing) in rows {
        write!(text, "{}\t{}", cell.name, standing.name).ok();
        for attainment in standing.attainments() {
            write!(text, "\t{attainment}").ok();
        }
        text.push('\n');
    }
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Returns the table of paired differences, this build minus the saved one, for tidegate.
pub fn compare(path: &Path, rows: &[(&Cell, &Standing)]) -> Result<String, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let saved = read(&text);
    let mut table = String::from(
        "**This build against the saved one**, tidegate, paired by draw.\n\n\
         | cell | saved | now | difference, points |\n| --- | --- | --- | --- |\n",
    );
    for set in Set::ALL {
        let mut means: Vec<Vec<f64>> = Vec::new();
        for (cell, standing) in rows.iter().filter(|(cell, _)| cell.set == set) {
            let key = (cell.name.as_str(), standing.name.as_str());
            let Some(before) = saved.get(&key) else { continue };
            let now = standing.attainments();
            let pairs = || now.iter().copied().zip(before.iter().copied());
            means.push(pairs().map(|(now, before)| (now - before) * 100.0).collect());
            writeln!(
                table,
                "| {} | {:.4} | {:.4} | {:+.2} |",
                cell.name,
                Estimate::of(before).mean,
                Estimate::of(&now).mean,
                Estimate::paired(pairs()).scaled(100.0),
            )
            .ok();
        }
        if !means.is_empty() {
            let lowest = means.iter().map(|cell| Estimate::of(cell).mean).fold(f64::MAX, f64::min);
            let mean = mean_of_cells(&means);
            let name = set.as_str();
            writeln!(
                table,
                "| **mean of {name}** (lowest cell {lowest:+.2}) | | | **{mean:+.2}** |"
            )
            .ok();
        }
    }
    Ok(table)
}

fn read(text: &str) -> BTreeMap<(&str, &str), Vec<f64>> {
    let line = |line| {
        let mut fields = str::split(line, '\t');
        let key = (fields.next()?, fields.next()?);
        Some((key, fields.filter_map(|field| field.parse().ok()).collect()))
    };
    text.lines().filter_map(line).collect()
}

/// Returns the estimate of the mean over cells: its draws are the means of the cells' draws.
pub fn mean_of_cells(cells: &[Vec<f64>]) -> Estimate {
    let draws = cells.iter().map(Vec::len).min().unwrap_or(0);
    let mean = |draw: usize| {
        cells.iter().filter_map(|cell| cell.get(draw)).sum::<f64>() / cells.len() as f64
    };
    Estimate::of(&(0..draws).map(mean).collect::<Vec<f64>>())
}
