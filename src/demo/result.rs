//! The result of a demo in sentences: requests that met their targets, and the number of engines
//! that a fixed split needs for the same.

use std::io::Write;
use tidegate_sim::{Report, best_split};

use super::{DRAIN, DemoLoad, ENGINES};

/// Largest fixed fleet that is tried, as a multiple of the demo's.
const TRIED: usize = 2;
/// Difference of attainment that counts as equal.
const SAME: f64 = 0.005;

/// Prints the result.
pub fn print(tidegate: &Report, fixed: &Report, load: &DemoLoad) {
    let mut out = std::io::stdout().lock();
    // A closed stdout (EPIPE) is ignored.
    writeln!(out, "\n{}", words(tidegate, fixed)).ok();
    // The engine model of the fixed split has neither failures nor prefix caches.
    if load.fails.is_none() && !load.prefix_cache {
        writeln!(out, "{}", engines(tidegate.attainment, load)).ok();
    }
}

/// Both policies in one sentence each.
fn words(tidegate: &Report, fixed: &Report) -> String {
    let served = |report: &Report| (report.attainment * report.requests as f64).round() as u64;
    let percent = |report: &Report| report.attainment * 100.0;
    let failed = |report: &Report| match report.errors {
        Some(count) if count > 0 => format!("; {count} failed"),
        _ => String::new(),
    };
    format!(
        "Served in time with tidegate: {} of {} requests ({:.0} %{}).\n\
         Served in time with the best fixed split, chosen in hindsight: {} ({:.0} %{}).",
        served(tidegate),
        tidegate.requests,
        percent(tidegate),
        failed(tidegate),
        served(fixed),
        percent(fixed),
        failed(fixed),
    )
}

/// The smallest fixed fleet with the same attainment in the engine model.
fn engines(attainment: f64, load: &DemoLoad) -> String {
    let end = load.trace.end() + DRAIN;
    let (have, most) = (usize::from(ENGINES), usize::from(ENGINES) * TRIED);
    let enough = |count: &usize| {
        best_split(&load.trace, load.profile, *count, end, &load.slo)
            .is_some_and(|(_, report)| report.attainment >= attainment - SAME)
    };
    match (have..=most).find(enough) {
        Some(count) if count == have => {
            format!("A fixed split does the same with {have} engines (engine model).")
        }
        Some(count) => format!(
            "A fixed split needs {count} engines for the same; tidegate used {have} (engine model)."
        ),
        None => format!(
            "A fixed split needs more than {most} engines for the same; tidegate used {have} (engine model)."
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sim::Outcome;
    use tidegate_types::{Seconds, Slo, Tokens};

    #[test]
    fn the_result_counts_requests_in_time_and_failures() {
        let outcome = |ttft: f64, error: bool| Outcome {
            ttft: Some(Seconds(ttft)),
            tpot: Some(Seconds(0.01)),
            gap_max: Some(Seconds(0.02)),
            done: !error,
            error,
            tokens: Tokens(10),
        };
        let slo = Slo::default();
        let report =
            |outcomes: &[Outcome]| Report::of("p", 1.0, 0, outcomes, &slo).with_errors(outcomes);
        let good = report(&[outcome(0.1, false), outcome(0.2, false)]);
        let bad = report(&[outcome(0.1, false), outcome(9.0, true)]);
        let text = words(&good, &bad);
        assert!(text.contains("2 of 2 requests (100 %)"), "{text}");
        assert!(text.contains("hindsight: 1 (50 %; 1 failed)"), "{text}");
    }
}
