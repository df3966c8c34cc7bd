//! Times decode steps by samples of a backend's account. Between two prefills, the mean inter-token
//! latency is the streams' time divided by their tokens, whatever streams begin and end meanwhile.

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
    first: Option<Mark>,
    last: Option<Mark>,
}

#[derive(Clone, Copy, Debug)]
struct Sampled {
    at: Moment,
    /// Streams with a first token.
    decoding: f64,
    emitted: Tokens,
}

/// The state at a sample that found new tokens.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Moment,
    emitted: Tokens,
    kv: Tokens,
    stream_time: Seconds,
}

impl DecodeRuns {
    /// Takes the account at `now`. Returns an observation at the end of a run.
    pub fn sample(&mut self, balance: &Balance, now: Moment) -> Option<DecodeSteps> {
        let decoding = balance.streams.saturating_sub(balance.awaiting_first_token);
        if balance.prefill_legs > 0 || decoding == 0 {
            let ended = std::mem::take(self);
            return ended.steps();
        }
        let sampled = Sampled { at: now, decoding: f64::from(decoding), emitted: balance.emitted };
        let before = self.before.replace(sampled)?;
        let mean = (before.decoding + sampled.decoding) / 2.0;
        self.stream_time += (now - before.at) * mean;
        if sampled.emitted <= before.emitted {
            return None;
        }
        let (kv, stream_time) = (balance.kv, self.stream_time);
        let mark = Mark { at: now, emitted: sampled.emitted, kv, stream_time };
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
        let streams = (last.stream_time - first.stream_time) / span;
        let steps = (last.emitted - first.emitted).as_f64() / streams;
        (steps >= STEPS_MIN).then(|| DecodeSteps {
            streams: (streams.round() as u32).max(1),
            kv: Tokens((first.kv + last.kv).get() / 2),
            gap: span / steps,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::{DecodeFit, DecodeModel};

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
                seen.extend(runs.sample(&balance, Moment::from_start(Seconds(sampled))));
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
    fn a_doubled_decode_cost_is_corrected_within_seconds() {
        let double = DecodeModel {
            base: TRUTH.base * 2.0,
            per_stream: TRUTH.per_stream * 2.0,
            per_kv_token: TRUTH.per_kv_token * 2.0,
            ..TRUTH
        };
        let mut fit = DecodeFit::new(double);
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
            seen.extend(runs.sample(&balance, Moment::from_start(Seconds(f64::from(tick) * 0.02))));
            balance.emitted = Tokens(u64::from(tick / 50));
        }
        let gaps: Vec<f64> = seen.iter().map(|steps| steps.gap.get()).collect();
        assert!(gaps.len() >= 3 && gaps.iter().all(|gap| (gap - 1.0).abs() < 0.01), "{gaps:?}");
    }
}
