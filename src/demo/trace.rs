//! The load that the demo replays: a slice of a recorded or synthetic trace if present, else
//! the built-in generator.

use std::path::{Path, PathBuf};
use tidegate_sim::Trace;
use tidegate_types::{Seconds, Tokens};

use crate::replay::{ReplayError, traces};

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Short prompts with long answers, then long prompts with short answers
    Shift,
    /// Large bursts of long prompts (code completion)
    Code,
    /// The built-in generator, even if trace files exist
    Bursts,
}

/// Directory of the traces, relative to the project's root.
const TRACES: &str = "benches/traces";
/// Start of the slice: the shift from long outputs to long prompts, with streams still running.
const SHIFT_AT: Seconds = Seconds(120.0);
/// Speed-up of the trace: eight engines are just too few for both phases at once.
const SHIFT_RATE: f64 = 1.5;
/// Factor on output lengths, so that the last arrivals finish within the demo.
const SHIFT_OUTPUT: f64 = 0.5;
/// Speed-up of the code trace, to load eight engines.
const CODE_RATE: f64 = 2.0;
/// Maximum prompt length in tokens, as in the reference table.
const PROMPT_MAX: Tokens = Tokens(32_000);
/// The generator's arrival rate, that of regime_shift.
const RATE: f64 = 14.0;
const SEED: u64 = 2026;

/// Returns the load of a demo of `length`.
pub fn choose(
    scenario: Scenario,
    file: Option<&Path>,
    length: Seconds,
) -> Result<Trace, ReplayError> {
    if let Some(file) = file {
        let trace = traces(&[file.to_owned()])?;
        return Ok(trace.cap_prompt(PROMPT_MAX).window(Seconds::ZERO, length));
    }
    let at_hand = |name: &str| -> Option<PathBuf> {
        Some(Path::new(TRACES).join(name)).filter(|path| path.exists())
    };
    let trace = match scenario {
        Scenario::Shift => match at_hand("regime_shift_60s.jsonl") {
            Some(path) => traces(&[path])?
                .window(SHIFT_AT - length * (SHIFT_RATE / 2.0), length * SHIFT_RATE)
                .at_rate(SHIFT_RATE)
                .scale_output(SHIFT_OUTPUT),
            None => made(length),
        },
        Scenario::Code => match at_hand("azure_llm_2023_code.first30min.csv") {
            Some(path) => traces(&[path])?.at_rate(CODE_RATE).window(Seconds::ZERO, length),
            None => made(length),
        },
        Scenario::Bursts => made(length),
    };
    Ok(trace.cap_prompt(PROMPT_MAX))
}

fn made(length: Seconds) -> Trace {
    let phase = length / 2.0;
    let trace = Trace::bursts(SEED, phase * 3.0, RATE * SHIFT_RATE, phase);
    trace.window(phase, length).scale_output(SHIFT_OUTPUT)
}
