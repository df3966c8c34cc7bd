//! Request arrivals: the formats of docs/spec/trace-formats.md, and a generator for machines
//! without trace files.

use serde::Deserialize;
use thiserror::Error;
use tidegate_types::{CLASSES_MAX, ClassId, Seconds, Tokens};

use crate::random::SplitMix;

/// Longest trace that is simulated or replayed: 8 days. The longest public ones last a week.
const LENGTH_MAX: Seconds = Seconds(8.0 * 86_400.0);
/// Largest timestamp of a line, in milliseconds: above the milliseconds since the Unix epoch.
const TIMESTAMP_MAX: f64 = 1e14;
/// Most prompt or output tokens of a request: above the contexts of all models.
const TOKENS_MAX: u64 = 1_000_000_000;

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
    /// Service class.
    pub class: ClassId,
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

/// Why a trace cannot be run.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum UnusableTrace {
    /// It has no arrival.
    #[error("the trace has no requests")]
    Empty,
    /// It lasts too long at the chosen rate.
    #[error(
        "the trace lasts {seconds:?} s at rate {rate:?}, more than 8 days ({} s)", LENGTH_MAX.get()
    )]
    Long {
        /// Its length at the rate, in seconds.
        seconds: f64,
        /// Factor on the arrival rate.
        rate: f64,
    },
}

#[derive(Deserialize)]
struct JsonLine {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    #[serde(default)]
    hash_ids: Vec<u64>,
    #[serde(default)]
    class: u8,
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

    /// Checks that the trace can be run at `rate`.
    ///
    /// # Errors
    /// [`UnusableTrace`].
    pub fn check(&self, rate: f64) -> Result<(), UnusableTrace> {
        let length = self.end() / rate;
        match self.arrivals.is_empty() {
            true => Err(UnusableTrace::Empty),
            false if length <= LENGTH_MAX => Ok(()),
            false => Err(UnusableTrace::Long { seconds: length.get(), rate }),
        }
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
            let output = (arrival.output.as_f64() * scale).round() as u64;
            arrival.output = Tokens(output.clamp(1, TOKENS_MAX));
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
                ..Arrival::default()
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
    let timestamp = line.timestamp;
    if !(0.0..=TIMESTAMP_MAX).contains(&timestamp) {
        return Err(format!("timestamp is {timestamp}, must be 0 to {TIMESTAMP_MAX} ms"));
    }
    if usize::from(line.class) > CLASSES_MAX {
        return Err(format!("class is {}, must be 0 to {CLASSES_MAX}", line.class));
    }
    Ok(Arrival {
        at: Seconds::from_millis(timestamp),
        prompt: tokens("input_length", line.input_length)?,
        output: tokens("output_length", line.output_length)?,
        blocks: line.hash_ids,
        class: ClassId(line.class),
    })
}

/// Returns a count of tokens, at least one.
fn tokens(name: &str, count: u64) -> Result<Tokens, String> {
    match count <= TOKENS_MAX {
        true => Ok(Tokens(count.max(1))),
        false => Err(format!("{name} is {count}, must be 0 to {TOKENS_MAX}")),
    }
}

/// `2023-11-16 18:17:03.9799600,4808,10`: the date is used within one month only.
fn csv_line(line: &str) -> Result<Arrival, String> {
    let mut fields = line.trim().split(',');
    let mut field = |name| fields.next().ok_or_else(|| format!("no {name}"));
    let at = seconds_of(field("timestamp")?)?;
    let count = |text: &str| text.trim().parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
    let prompt = tokens("context tokens", count(field("context tokens")?)?)?;
    let output = tokens("generated tokens", count(field("generated tokens")?)?)?;
    Ok(Arrival { at, prompt, output, ..Arrival::default() })
}

fn seconds_of(stamp: &str) -> Result<Seconds, String> {
    let wrong = || format!("{stamp:?} is no timestamp");
    let (date, time) = stamp.trim().split_once([' ', 'T']).ok_or_else(wrong)?;
    let within = |text: &str, end: f64| {
        text.parse().ok().filter(|value: &f64| value.is_sign_positive() && *value < end)
    };
    let day = date.rsplit('-').next().and_then(|day| within(day, 32.0)).ok_or_else(wrong)?;
    let time = time.trim_end_matches('Z').split('+').next().ok_or_else(wrong)?;
    let [hours, minutes, seconds] = time.split(':').collect::<Vec<_>>()[..] else {
        return Err(wrong());
    };
    // A minute may end with a leap second.
    let parts = (within(hours, 24.0), within(minutes, 60.0), within(seconds, 61.0));
    let (Some(hours), Some(minutes), Some(seconds)) = parts else { return Err(wrong()) };
    Ok(Seconds(((day * 24.0 + hours) * 60.0 + minutes) * 60.0 + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read() {
        let json = "{\"timestamp\": 500, \"input_length\": 7, \"output_length\": 2, \"hash_ids\": [1], \"class\": 2}\n\
                    {\"timestamp\": 27, \"input_length\": 1706, \"output_length\": 13}\n";
        let trace = Trace::parse(json).unwrap();
        assert_eq!(trace.arrivals[0].prompt, Tokens(1706));
        assert!((trace.arrivals[1].at.get() - 0.473).abs() < 1e-9);
        assert_eq!(trace.arrivals[1].blocks, [1]);
        assert_eq!((trace.arrivals[0].class, trace.arrivals[1].class), (ClassId(0), ClassId(2)));
        let ninth = json.replace("\"class\": 2", "\"class\": 9");
        assert_eq!(Trace::parse(&ninth).unwrap_err().line, 1);
        let csv = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 23:59:59.5,4808,10\n\
                   2023-11-17 00:00:01.0319600,3180,8\n";
        let trace = Trace::parse(csv).unwrap();
        assert!((trace.arrivals[1].at.get() - 1.53196).abs() < 1e-6);
        assert_eq!(trace.arrivals[0].output, Tokens(10));
        assert_eq!(Trace::parse("a,b\nx,1,2").unwrap_err().line, 2);
    }

    #[test]
    fn a_line_with_an_impossible_value_is_named() {
        let json = |timestamp: &str, input: &str, output: &str| {
            format!(
                "{{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1}}\n\
                 {{\"timestamp\": {timestamp}, \"input_length\": {input}, \"output_length\": {output}}}"
            )
        };
        assert!(Trace::parse(&json("1.7e12", "1000000000", "5")).is_ok());
        for (timestamp, input, output) in [
            ("-5", "1", "1"),
            ("1e300", "1", "1"),
            ("1e999", "1", "1"),
            ("NaN", "1", "1"),
            ("null", "1", "1"),
            ("5", "18446744073709551615", "1"),
            ("5", "1", "1000000001"),
            ("5", "-1", "1"),
        ] {
            let error = Trace::parse(&json(timestamp, input, output)).unwrap_err();
            assert_eq!(error.line, 2, "{timestamp} {input} {output}: {error}");
        }
        for line in [
            "2023-11-nan 00:00:00,1,1",
            "2023-11-16 -5:00:00,1,1",
            "2023-11-16 00:inf:00,1,1",
            "2023-11-16 00:00:1e300,1,1",
            "2023-11-16 00:00,1,1",
            "2023-11-16 00:00:00,18446744073709551615,1",
            "2023-11-16 00:00:00,1",
        ] {
            let error = Trace::parse(&format!("a,b,c\n{line}")).unwrap_err();
            assert_eq!(error.line, 2, "{line}: {error}");
        }
    }

    #[test]
    fn a_trace_that_is_empty_or_lasts_too_long_is_unusable() {
        let trace = |text: &str| Trace::parse(text).unwrap();
        let line =
            |ms: u64| format!("{{\"timestamp\":{ms},\"input_length\":1,\"output_length\":1}}\n");
        for empty in ["", "\n\n", "TIMESTAMP,ContextTokens,GeneratedTokens\n"] {
            assert_eq!(trace(empty).check(1.0), Err(UnusableTrace::Empty));
        }
        let minute = trace(&(line(0) + &line(60_000)));
        assert_eq!((minute.check(1.0), minute.check(1e300)), (Ok(()), Ok(())));
        let error = minute.check(1e-9).unwrap_err().to_string();
        assert_eq!(
            error,
            "the trace lasts 60000000000.0 s at rate 1e-9, more than 8 days (691200 s)"
        );
        assert!(trace(&(line(0) + &line(3_000_000_000_000))).check(1.0).is_err());
        let long = minute.scale_output(1e300);
        assert_eq!(long.arrivals[0].output, Tokens(TOKENS_MAX));
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
