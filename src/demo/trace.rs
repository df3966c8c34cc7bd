//! The loads of the demo: slices of recorded or synthetic traces if present, else the built-in
//! generator.

use std::path::{Path, PathBuf};
use tidegate_sim::Trace;
use tidegate_types::{Seconds, Tokens};

use crate::replay::{ReplayError, traces};

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// Short prompts with long answers, then long prompts with short answers
    Shift,
    /// Chats; in the middle third long documents arrive as well
    PrefillSurge,
    /// Long documents; in the middle third chats with long answers arrive as well
    DecodeSurge,
    /// Documents and chats at the same time
    Mixed,
    /// Agent sessions: prompts grow turn by turn and share their beginning
    Agents,
    /// Mixed load; two of eight engines die after a third and come back after two thirds
    Failure,
    /// Large bursts of long prompts (code completion)
    Code,
    /// The built-in generator, even if trace files exist
    Bursts,
}

/// Directory of the traces, relative to the project's root.
const TRACES: &str = "benches/traces";
/// Start of the slice: the shift from long outputs to long prompts, with streams still running.
const SHIFT_AT: Seconds = Seconds(120.0);
/// Speed-up of the trace: eight engines are slightly too few for both phases at once.
const SHIFT_RATE: f64 = 1.5;
/// Factor on output lengths, so that the last arrivals finish within the demo.
const SHIFT_OUTPUT: f64 = 0.5;
/// Speed-up of the code trace, to load eight engines.
const CODE_RATE: f64 = 2.0;
/// Maximum prompt length in tokens, as in the reference table.
const PROMPT_MAX: Tokens = Tokens(32_000);
/// The generator's arrival rate, that of regime_shift.
const RATE: f64 = 14.0;
/// Requests a second of chats and of documents in the scenarios. A document is 0.36 s of prefill:
/// at this rate they need five of eight engines, in a surge seven.
const CHATS: f64 = 16.0;
const DOCUMENTS: f64 = 12.0;
const SURGE: f64 = 1.5;
/// Longest answer of a chat: 8 s of decode, so that the last ones end within the demo.
const ANSWER_MAX: Tokens = Tokens(500);
/// Agent sessions a second, and the time after which many run concurrently.
const SESSIONS: f64 = 0.2;
const SESSIONS_AT: Seconds = Seconds(120.0);
const SEED: u64 = 2026;

impl Scenario {
    /// Describes the load in sentences.
    pub const fn story(self) -> &'static str {
        match self {
            Scenario::Shift => {
                "Users first chat (short prompts, long answers), then all send long documents. \
                 First most engines must decode, then most must prefill."
            }
            Scenario::PrefillSurge => {
                "Users chat all the time. In the middle third a wave of long documents arrives: \
                 engines must move to prefill, and back afterwards."
            }
            Scenario::DecodeSurge => {
                "Long documents are summarised all the time. In the middle third chats with long \
                 answers arrive as well: engines must move to decode, and back afterwards."
            }
            Scenario::Mixed => "Documents and chats arrive at the same time, at a steady rate.",
            Scenario::Agents => {
                "Agents work in sessions: every turn sends the whole conversation again, so that \
                 most of each prompt is in the prefix cache of one engine."
            }
            Scenario::Failure => {
                "Documents and chats arrive at a steady rate. After a third two of eight engines \
                 die, after two thirds they come back."
            }
            Scenario::Code => "Code completion: bursts of long prompts with short answers.",
            Scenario::Bursts => "Long prompts and long answers take turns.",
        }
    }
}

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
    let third = length / 3.0;
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
        Scenario::PrefillSurge => {
            let surge = later(documents(DOCUMENTS * SURGE, third), third);
            Trace::merge([chats(CHATS, length), surge])
        }
        Scenario::DecodeSurge => {
            let surge = later(chats(CHATS * SURGE, third), third);
            Trace::merge([documents(DOCUMENTS, length), surge])
        }
        Scenario::Mixed | Scenario::Failure => {
            Trace::merge([chats(CHATS, length), documents(DOCUMENTS, length)])
        }
        Scenario::Agents => {
            Trace::agents(SEED, SESSIONS_AT + length, SESSIONS).window(SESSIONS_AT, length)
        }
    };
    Ok(trace.cap_prompt(PROMPT_MAX))
}

fn made(length: Seconds) -> Trace {
    let phase = length / 2.0;
    let trace = Trace::bursts(SEED, phase * 3.0, RATE * SHIFT_RATE, phase);
    trace.window(phase, length).scale_output(SHIFT_OUTPUT)
}

/// Long prompts with short answers: the generator's even phases.
fn documents(rate: f64, length: Seconds) -> Trace {
    Trace::bursts(SEED, length, rate, length)
}

/// Short prompts with long answers: its odd phases.
fn chats(rate: f64, length: Seconds) -> Trace {
    let mut trace = Trace::bursts(SEED + 1, length * 2.0, rate, length).window(length, length);
    for arrival in &mut trace.arrivals {
        arrival.output = arrival.output.min(ANSWER_MAX);
    }
    trace
}

fn later(mut trace: Trace, by: Seconds) -> Trace {
    for arrival in &mut trace.arrivals {
        arrival.at += by;
    }
    trace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_surge_is_in_the_middle_third() {
        let length = Seconds(30.0);
        let trace = choose(Scenario::PrefillSurge, None, length).unwrap();
        let tokens = |from: f64| {
            let part = trace.clone().window(Seconds(from), Seconds(10.0));
            part.arrivals.iter().map(|arrival| arrival.prompt.get()).sum::<u64>()
        };
        assert!(tokens(10.0) > 5 * tokens(0.0).max(tokens(20.0)), "prompt tokens by third");
        assert!(trace.end() <= length);
    }
}
