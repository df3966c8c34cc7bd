//! Times decode steps by samples of a backend's account. Between two prefills, the mean ITL is the
//! sum of the streams' durations divided by their tokens, even if streams begin and end in between.

use crate::inflight::Balance;
use tidegate_types::{Moment, Seconds, Tokens};

/// Fewest steps of an observation: the ends of a run are known up to one sampling interval, and a
/// step of several streams may be counted in two samples.
const STEPS_MIN: f64 = 8.0;
/// Shortest observation: a dozen sampling intervals.
const SPAN_MIN: Seconds = Seconds(0.25);
/// Longest observation, unless it has fewer than [`STEPS_MIN`] steps.
const SPAN_MAX: Seconds = Seconds(1.0);

/// Steps of one backend, timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DecodeSteps {
    /// Mean number of streams.
    pub streams: u32,
    /// Mean of their KV tokens.
    pub kv: Tokens,
    /// Mean inter-token latency.
    pub gap: Seconds,
}

/// The decode work of one backend since its last prefill.
#[derive(Debug, Default)]
pub(super) struct DecodeRuns {
    before: Option<Sampled>,
    /// Sum of the time of all streams up to the last sample.
    stream_time: Seconds,
    /// The same of the streams of other gateways.
    others_time: Seconds,
    first: Option<Mark>,
    last: Option<Mark>,
}

#[derive(Clone, Copy, Debug)]
struct Sampled {
    at: Moment,
    /// Streams with a first token.
    decoding: f64,
    /// Those of other gateways beside them.
    others: f64,
    emitted: Tokens,
}

/// The state at a sample that found new tokens.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Moment,
    emitted: Tokens,
    kv: Tokens,
    stream_time: Seconds,
    others_time: Seconds,
}

impl DecodeRuns {
    /// Takes the account at `now`: the counters of this gateway, and what the others have in flight.
    /// The tokens of the own streams time the steps of all. Returns an observation at the end of a
    /// run.
    pub fn sample(
        &mut self,
        balance: &Balance,
        others: &Balance,
        now: Moment,
    ) -> Option<DecodeSteps> {
        let decoding = |of: &Balance| f64::from(of.streams.saturating_sub(of.awaiting_first_token));
        let own = decoding(balance);
        if balance.prefill_legs > 0 || others.prefill_legs > 0 || own == 0.0 {
            let ended = std::mem::take(self);
            return ended.steps();
        }
        let (others, kv) = (decoding(others), balance.kv + others.kv);
        let sampled = Sampled { at: now, decoding: own, others, emitted: balance.emitted };
        let before = self.before.replace(sampled)?;
        let time = |before: f64, now: f64| (before + now) / 2.0;
        let span = now - before.at;
        self.stream_time += span * time(before.decoding, sampled.decoding);
        self.others_time += span * time(before.others, sampled.others);
        if sampled.emitted <= before.emitted {
            return None;
        }
        let (stream_time, others_time) = (self.stream_time, self.others_time);
        let mark = Mark { at: now, emitted: sampled.emitted, kv, stream_time, others_time };
        let Some(first) = self.first else {
            self.first = Some(mark);
            return None;
        };
        self.last = Some(mark);
        if mark.at - first.at < SPAN_MAX {
            return None;
        }
        let steps = self.steps()?;
        (self.first, self.last) = (Some(mark), None);
        Some(steps)
    }

    /// Returns the steps between the marks, if they suffice.
    fn steps(&self) -> Option<DecodeSteps> {
        let (first, last) = (self.first?, self.last?);
        let span = last.at - first.at;
        if span < SPAN_MIN {
            return None;
        }
        let own = (last.stream_time - first.stream_time) / span;
        let others = (last.others_time - first.others_time) / span;
        let steps = (last.emitted - first.emitted).as_f64() / own;
        (steps >= STEPS_MIN).then(|| DecodeSteps {
            streams: ((own + others).round() as u32).max(1),
            kv: Tokens((first.kv + last.kv).get() / 2),
            gap: span / steps,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{DecodeModel, DecodeRegression};

    /// No other gateway.
    const NONE: Balance = Balance {
        prefill: Seconds::ZERO,
        prefill_tokens: Tokens::ZERO,
        prefill_legs: 0,
        streams: 0,
        awaiting_first_token: 0,
        kv: Tokens::ZERO,
        emitted: Tokens::ZERO,
    };

    const TRUTH: DecodeModel = DecodeModel {
        base: Seconds(0.015),
        per_stream: Seconds(40e-6),
        free_streams: 0,
        per_kv_token: Seconds(30e-9),
    };

    /// An engine whose streams begin and end every few steps and that prefills every `prefills`
    /// steps, sampled every 5 ms. Returns the observations.
    fn observe(steps: u64, prefills: u64) -> Vec<DecodeSteps> {
        let (mut runs, mut seen) = (DecodeRuns::default(), Vec::new());
        let mut balance = Balance::default();
        let (mut now, mut sampled) = (0.0, 0.0);
        for step in 0..steps {
            let streams = 20 + (step / 3 * 7 % 40) as u32;
            let kv = Tokens(u64::from(streams) * 1500);
            balance = Balance { streams, kv, ..balance };
            let prefilling = step % prefills < 3;
            balance.prefill_legs = u32::from(prefilling);
            let stall = if prefilling { 0.1 } else { 0.0 };
            now += TRUTH.step(streams, kv).get() + stall;
            while sampled < now {
                seen.extend(runs.sample(&balance, &NONE, Moment::from_start(Seconds(sampled))));
                sampled += 0.005;
            }
            balance.emitted += Tokens(u64::from(streams));
        }
        seen
    }

    #[test]
    fn steps_are_timed_between_prefills_while_streams_come_and_go() {
        for prefills in [40, 100, 1000] {
            let seen = observe(4000, prefills);
            assert!(seen.len() > 20, "{prefills}: {}", seen.len());
            let ratio = |steps: &DecodeSteps| steps.gap / TRUTH.step(steps.streams, steps.kv);
            let mean = seen.iter().map(ratio).sum::<f64>() / seen.len() as f64;
            assert!((mean - 1.0).abs() < 0.02, "{prefills}: {mean}");
            assert!(seen.iter().all(|steps| (ratio(steps) - 1.0).abs() < 0.1), "{seen:?}");
        }
    }

    #[test]
    fn streams_of_other_gateways_count_in_the_steps_that_the_own_tokens_time() {
        let mut runs = DecodeRuns::default();
        let others = Balance { streams: 30, kv: Tokens(45_000), ..NONE };
        let mut own = Balance { streams: 10, kv: Tokens(15_000), ..NONE };
        let mut seen = Vec::new();
        for tick in 0..400_u32 {
            let now = Moment::from_start(Seconds(f64::from(tick) * 0.005));
            seen.extend(runs.sample(&own, &others, now));
            // A step of 20 ms.
            own.emitted = Tokens(u64::from(tick / 4) * 10);
        }
        assert!(!seen.is_empty());
        for steps in seen {
            assert_eq!((steps.streams, steps.kv), (40, Tokens(60_000)));
            assert!((steps.gap.get() - 0.02).abs() < 1e-3, "{steps:?}");
        }
    }

    #[test]
    fn a_doubled_decode_cost_is_corrected_within_seconds() {
        let double = DecodeModel {
            base: TRUTH.base * 2.0,
            per_stream: TRUTH.per_stream * 2.0,
            per_kv_token: TRUTH.per_kv_token * 2.0,
            ..TRUTH
        };
        let mut fit = DecodeRegression::new(double);
        // 400 steps of 17 ms and a prefill every 40 steps: 10 s.
        for steps in observe(400, 40) {
            fit.observe(steps.streams, steps.kv, steps.gap);
        }
        let ratio = fit.model().step(60, Tokens(90_000)) / TRUTH.step(60, Tokens(90_000));
        assert!((ratio - 1.0).abs() < 0.05, "{ratio}");
    }

    #[test]
    fn an_engine_of_a_token_a_second_is_timed_over_several_seconds() {
        let mut runs = DecodeRuns::default();
        let mut balance = Balance { streams: 1, kv: Tokens(100), ..Balance::default() };
        let mut seen = Vec::new();
        for tick in 0..1500_u32 {
            seen.extend(runs.sample(
                &balance,
                &NONE,
                Moment::from_start(Seconds(f64::from(tick) * 0.02)),
            ));
            balance.emitted = Tokens(u64::from(tick / 50));
        }
        let gaps: Vec<f64> = seen.iter().map(|steps| steps.gap.get()).collect();
        assert!(gaps.len() >= 3 && gaps.iter().all(|gap| (gap - 1.0).abs() < 0.01), "{gaps:?}");
    }
}
