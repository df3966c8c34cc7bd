//! Request arrivals: the formats of docs/spec/trace-formats.md, and a generator for machines
//! without trace files.

use serde::Deserialize;
use thiserror::Error;
use tidegate_types::{Seconds, Tokens};

use crate::random::SplitMix;

/// One request of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arrival {
    /// Time since the start of the trace.
    pub at: Seconds,
    /// Prompt tokens.
    pub prompt: Tokens,
    /// Output tokens.
    pub output: Tokens,
    /// Ids of the prompt's 512-token blocks, if the trace has them; equal ids are equal text.
    pub blocks: Vec<u64>,
}

/// Arrivals ordered by time, the first at zero or later.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Arrivals in order of time.
    pub arrivals: Vec<Arrival>,
}

/// Parse error of a trace line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {problem}")]
pub struct TraceError {
    /// Line number, from 1.
    pub line: usize,
    /// Description of the error.
    pub problem: String,
}

#[derive(Deserialize)]
struct JsonLine {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

impl Trace {
    /// Parses a trace: JSON lines with `timestamp` in milliseconds, or Azure's CSV with a header.
    ///
    /// # Errors
    /// The first line in neither format.
    pub fn parse(text: &str) -> Result<Trace, TraceError> {
        let csv = !text.trim_start().starts_with('{');
        let mut arrivals = Vec::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            if csv && index == 0 {
                continue;
            }
            let arrival = if csv { csv_line(line) } else { json_line(line) };
            arrivals.push(arrival.map_err(|problem| TraceError { line: index + 1, problem })?);
        }
        Ok(Trace { arrivals }.start_at_zero())
    }

    /// Merges several traces from a common start.
    pub fn merge(traces: impl IntoIterator<Item = Trace>) -> Trace {
        let mut arrivals: Vec<Arrival> = traces.into_iter().flat_map(|t| t.arrivals).collect();
        arrivals.sort_by(|a, b| a.at.get().total_cmp(&b.at.get()));
        Trace { arrivals }
    }

    /// Returns the trace with its rate multiplied by `rate`.
    #[must_use]
    pub fn at_rate(mut self, rate: f64) -> Trace {
        for arrival in &mut self.arrivals {
            arrival.at = arrival.at / rate;
        }
        self
    }

    /// Returns the trace with prompts cut to at most `cap` tokens.
    #[must_use]
    pub fn cap_prompt(mut self, cap: Tokens) -> Trace {
        for arrival in &mut self.arrivals {
            arrival.prompt = arrival.prompt.min(cap);
            arrival.blocks.truncate(cap.get().div_ceil(512) as usize);
        }
        self
    }

    /// Returns the trace with outputs scaled by `scale`, at least one token each.
    #[must_use]
    pub fn scale_output(mut self, scale: f64) -> Trace {
        for arrival in &mut self.arrivals {
            arrival.output = Tokens(((arrival.output.as_f64() * scale).round() as u64).max(1));
        }
        self
    }

    /// Returns the arrivals from `from` on for `length`, with times shifted to zero.
    #[must_use]
    pub fn window(mut self, from: Seconds, length: Seconds) -> Trace {
        self.arrivals.retain(|arrival| arrival.at >= from && arrival.at < from + length);
        for arrival in &mut self.arrivals {
            arrival.at -= from;
        }
        self
    }

    /// Returns the time of the last arrival.
    pub fn end(&self) -> Seconds {
        self.arrivals.last().map_or(Seconds::ZERO, |arrival| arrival.at)
    }

    /// Generates Poisson arrivals in alternating phases of `phase`: long prompts with short
    /// answers, then short prompts with long answers (docs/spec/trace-formats.md#regime-shift). The
    /// same seed gives the same trace.
    pub fn bursts(seed: u64, length: Seconds, rate: f64, phase: Seconds) -> Trace {
        let mut random = SplitMix(seed);
        let (mut at, mut arrivals) = (0.0, Vec::new());
        loop {
            at += -random.unit().ln() / rate;
            if at >= length.get() {
                return Trace { arrivals };
            }
            let even = ((at / phase.get()) as u64).is_multiple_of(2);
            let (input, output) =
                if even { ((8.3, 0.5), (3.9, 0.8)) } else { ((5.8, 0.7), (7.0, 0.6)) };
            let prompt = random.lognormal(input).clamp(1.0, 32_000.0);
            let output = random.lognormal(output).clamp(1.0, 8_000.0);
            arrivals.push(Arrival {
                at: Seconds(at),
                prompt: Tokens(prompt as u64),
                output: Tokens(output as u64),
                blocks: Vec::new(),
            });
        }
    }

    fn start_at_zero(mut self) -> Trace {
        self.arrivals.sort_by(|a, b| a.at.get().total_cmp(&b.at.get()));
        let start = self.arrivals.first().map_or(Seconds::ZERO, |first| first.at);
        for arrival in &mut self.arrivals {
            arrival.at -= start;
        }
        self
    }
}

fn json_line(line: &str) -> Result<Arrival, String> {
    let line: JsonLine = serde_json::from_str(line).map_err(|error| error.to_string())?;
    Ok(Arrival {
        at: Seconds::from_millis(line.timestamp),
        prompt: Tokens(line.input_length.max(1)),
        output: Tokens(line.output_length.max(1)),
        blocks: line.hash_ids,
    })
}

/// `2023-11-16 18:17:03.9799600,4808,10`: the date is used within one month only.
fn csv_line(line: &str) -> Result<Arrival, String> {
    let mut fields = line.trim().split(',');
    let mut field = |name| fields.next().ok_or_else(|| format!("no {name}"));
    let at = seconds_of(field("timestamp")?)?;
    let count = |text: &str| text.trim().parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
    let prompt = count(field("context tokens")?)?.max(1);
    let output = count(field("generated tokens")?)?.max(1);
    Ok(Arrival { at, prompt: Tokens(prompt), output: Tokens(output), blocks: Vec::new() })
}

fn seconds_of(stamp: &str) -> Result<Seconds, String> {
    let wrong = || format!("{stamp:?} is no timestamp");
    let (date, time) = stamp.trim().split_once([' ', 'T']).ok_or_else(wrong)?;
    let day: f64 = date.rsplit('-').next().and_then(|day| day.parse().ok()).ok_or_else(wrong)?;
    let time = time.trim_end_matches('Z').split('+').next().ok_or_else(wrong)?;
    let parts: Option<Vec<f64>> = time.split(':').map(|part| part.parse().ok()).collect();
    match parts.as_deref() {
        Some([hours, minutes, seconds]) => {
            Ok(Seconds(((day * 24.0 + hours) * 60.0 + minutes) * 60.0 + seconds))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read() {
        let json = "{\"timestamp\": 500, \"input_length\": 7, \"output_length\": 2, \"hash_ids\": [1]}\n\
                    {\"timestamp\": 27, \"input_length\": 1706, \"output_length\": 13}\n";
        let trace = Trace::parse(json).unwrap();
        assert_eq!(trace.arrivals[0].prompt, Tokens(1706));
        assert!((trace.arrivals[1].at.get() - 0.473).abs() < 1e-9);
        assert_eq!(trace.arrivals[1].blocks, [1]);
        let csv = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 23:59:59.5,4808,10\n\
                   2023-11-17 00:00:01.0319600,3180,8\n";
        let trace = Trace::parse(csv).unwrap();
        assert!((trace.arrivals[1].at.get() - 1.53196).abs() < 1e-6);
        assert_eq!(trace.arrivals[0].output, Tokens(10));
        assert_eq!(Trace::parse("a,b\nx,1,2").unwrap_err().line, 2);
    }

    #[test]
    fn the_generator_has_the_given_rate_and_phases() {
        let trace = Trace::bursts(7, Seconds(200.0), 14.0, Seconds(20.0));
        assert_eq!(trace, Trace::bursts(7, Seconds(200.0), 14.0, Seconds(20.0)));
        let rate = trace.arrivals.len() as f64 / 200.0;
        assert!((rate - 14.0).abs() < 1.5, "{rate}");
        let mean = |window: Trace| {
            window.arrivals.iter().map(|a| a.prompt.as_f64()).sum::<f64>()
                / window.arrivals.len() as f64
        };
        let long = mean(trace.clone().window(Seconds(0.0), Seconds(20.0)));
        let short = mean(trace.window(Seconds(20.0), Seconds(20.0)));
        assert!(long > 5.0 * short, "{long} {short}");
    }
}
