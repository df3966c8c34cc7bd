//! `tidegate simulate --size`: the fewest engines with which a policy reaches an attainment.

use std::io::Write;
use tidegate_sim::{Policy, SimConfig, Trace, simulate};

use super::SimulateError;

/// Prints a line for each rate and policy, of a table or as JSON: `engines` and `attainment` are null where
/// the largest fleet does not suffice.
pub fn print(
    trace: &Trace,
    cells: &[(f64, Policy)],
    config: &SimConfig,
    attainment: f64,
    json: bool,
) -> Result<(), SimulateError> {
    let mut out = std::io::stdout().lock();
    if !json {
        writeln!(out, "{:<8} {:<16} {:>7}  attainment", "rate", "policy", "engines")?;
    }
    for (rate, policy) in cells {
        let trace = trace.clone().at_rate(*rate);
        let found = fewest(&trace, *policy, config, attainment);
        if json {
            let line = serde_json::json!({
                "rate": rate, "policy": policy.to_string(), "size": attainment,
                "engines": found.map(|(engines, _)| engines),
                "attainment": found.map(|(_, reached)| reached),
            });
            writeln!(out, "{line}")?;
            continue;
        }
        let (engines, reached) = match found {
            Some((engines, reached)) => (engines.to_string(), format!("{reached:.3}")),
            None => (format!("> {}", config.engines), format!("below {attainment}")),
        };
        writeln!(
            out,
            "{rate:<8} {policy:<16} {engines:>7}  {reached}",
            policy = policy.to_string()
        )?;
    }
    Ok(())
}

/// Returns the fewest engines that reach the attainment, with theirs. Attainment grows with the engines
/// except for noise of a few requests, so that a binary search suffices.
fn fewest(
    trace: &Trace,
    policy: Policy,
    config: &SimConfig,
    attainment: f64,
) -> Option<(usize, f64)> {
    let reaches = |engines: usize| {
        let config = SimConfig { engines, ..*config };
        let run = || simulate(trace, 1.0, policy, &config).report.attainment;
        policy.runs_on(engines).then(run).filter(|reached| *reached >= attainment)
    };
    let mut best = (config.engines, reaches(config.engines)?);
    let mut too_few = 0;
    while best.0 - too_few > 1 {
        let engines = too_few + (best.0 - too_few) / 2;
        match reaches(engines) {
            Some(reached) => best = (engines, reached),
            None => too_few = engines,
        }
    }
    Some(best)
}
