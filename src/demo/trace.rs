//! Which load the demo replays: a slice of a real or made trace where the traces are at hand, else
//! the built-in generator.

use std::path::{Path, PathBuf};
use tidegate_sim::Trace;
use tidegate_terms::{Seconds, Tokens};

use crate::replay::{ReplayError, traces};

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Long prompts with short answers, then short prompts with long answers
    Shift,
    /// Violent bursts of long prompts: code completion
    Code,
    /// The built-in generator, whatever traces are at hand
    Bursts,
}

/// Where the traces are, from the project's root.
const TRACES: &str = "../shared/traces";
/// In the trace one phase gives way to the next one here.
const SHIFT_AT: Seconds = Seconds(60.0);
/// Answers are shortened to this share, so that those of the last arrivals end in the demo's time.
const SHIFT_OUTPUT: f64 = 0.3;
/// The code trace is played so much faster, to load eight engines.
const CODE_RATE: f64 = 2.0;
/// The longest prompt, as in the reference table.
const PROMPT_MAX: Tokens = Tokens(32_000);
/// The generator's rate, that of regime_shift.
const RATE: f64 = 14.0;
const SEED: u64 = 2026;

/// The load of a demo of `length`.
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
                .window(SHIFT_AT - length / 2.0, length)
                .scale_output(SHIFT_OUTPUT),
            None => made(length),
        },
        Scenario::Code => match at_hand("azure_llm_2023_code.first30min.csv") {
            Some(path) => traces(&[path])?
                .at_rate(CODE_RATE)
                .window(Seconds::ZERO, length),
            None => made(length),
        },
        Scenario::Bursts => made(length),
    };
    Ok(trace.cap_prompt(PROMPT_MAX))
}

fn made(length: Seconds) -> Trace {
    Trace::bursts(SEED, length, RATE, length / 2.0).scale_output(SHIFT_OUTPUT)
}
