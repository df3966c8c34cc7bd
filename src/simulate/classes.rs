//! Service classes of a simulated load: `--class`, and the results by class.

use std::io::Write;
use tidegate_sim::{ClassReport, Classes, Policy, Report};
use tidegate_types::{CLASSES_MAX, DEFAULT_CLASS, Seconds, Slo};

use crate::simulate::{Args, SimulateError, duration};

/// A value of `--class`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SimulatedClass {
    Batch,
    Targets { ttft: f64, tpot: f64 },
}

impl std::str::FromStr for SimulatedClass {
    type Err = String;

    fn from_str(text: &str) -> Result<SimulatedClass, String> {
        let targets = || {
            let (ttft, tpot) = text.split_once(',')?;
            Some(SimulatedClass::Targets { ttft: ttft.parse().ok()?, tpot: tpot.parse().ok()? })
        };
        match text {
            "batch" => Ok(SimulatedClass::Batch),
            _ => targets().ok_or_else(|| "use TTFT,TPOT in seconds, or batch".to_owned()),
        }
    }
}

/// Returns the service classes besides the default one, with the ITL target of all.
pub fn of(args: &Args, itl: Option<Seconds>) -> Result<Classes, SimulateError> {
    if !args.class.is_empty() && args.policy.contains(&Policy::Bound) {
        let problem = "the policy bound has no service classes".to_owned();
        return Err(SimulateError::Arguments(problem));
    }
    args.class.iter().try_fold(Classes::default(), |classes, class| {
        let classes = match class {
            SimulatedClass::Batch => classes.with_batch(),
            SimulatedClass::Targets { ttft, tpot } => {
                let (ttft, tpot) = (duration("--class", *ttft)?, duration("--class", *tpot)?);
                classes.with_interactive(Slo { ttft, tpot, itl })
            }
        };
        let problem = || SimulateError::Arguments(format!("--class: at most {CLASSES_MAX}"));
        classes.ok_or_else(problem)
    })
}

/// Prints the results by service class: attainment, and the share that ended before the last arrival.
pub fn print(reports: &[Report]) {
    let mut out = std::io::stdout().lock();
    let mut line = |policy: &str, class: &str, columns: [String; 5]| {
        let [requests, attainment, done, ttft, tpot] = columns;
        writeln!(
            out,
            "{policy:<16} {class:<8} {requests:>8} {attainment:>10} {done:>7} {ttft:>9} {tpot:>9}"
        )
        .ok();
    };
    line(
        "policy",
        "class",
        ["requests", "attainment", "done", "ttft p99", "tpot p99"].map(String::from),
    );
    for report in reports {
        for of in &report.classes {
            let ClassReport { class, requests, attainment, done, ttft_p99, tpot_p99, .. } = of;
            let name = if *class == 0 { DEFAULT_CLASS.to_owned() } else { class.to_string() };
            let columns = [
                requests.to_string(),
                attainment.map_or("–".to_owned(), |share| format!("{share:.3}")),
                format!("{done:.3}"),
                format!("{:.0} ms", ttft_p99 * 1e3),
                format!("{:.1} ms", tpot_p99 * 1e3),
            ];
            line(&report.policy, &name, columns);
        }
    }
}
