//! Resampled traces for confidence intervals: equal load over a minute, with other arrival times and
//! another order of lengths.

use tidegate_types::Seconds;

use crate::random::SplitMix;
use crate::trace::Trace;

/// Arrivals move by up to this many seconds in either direction.
const JITTER: f64 = 0.25;
/// Lengths are exchanged among this many neighbouring arrivals: about four seconds at 14 requests/s.
const SHUFFLE_AMONG: usize = 64;

impl Trace {
    /// Returns the trace with arrivals jittered by up to 250 ms and lengths exchanged among groups of
    /// 64 neighbours; for seed 0 the trace itself. Prompts keep their blocks and outputs.
    #[must_use]
    pub fn resampled(mut self, seed: u64) -> Trace {
        if seed == 0 {
            return self;
        }
        let mut random = SplitMix(seed);
        for group in self.arrivals.chunks_mut(SHUFFLE_AMONG) {
            // Fisher–Yates shuffle of everything but the times.
            for last in (1..group.len()).rev() {
                let other = (random.next() % (last as u64 + 1)) as usize;
                let times = (group[last].at, group[other].at);
                group.swap(last, other);
                (group[last].at, group[other].at) = times;
            }
        }
        for arrival in &mut self.arrivals {
            arrival.at = (arrival.at + Seconds(random.between(-JITTER, JITTER))).max(Seconds::ZERO);
        }
        Trace::merge([self])
    }

    /// Returns the trace with its lengths and the arrival times of a Poisson process of one request
    /// per second.
    #[must_use]
    pub fn poisson(mut self, seed: u64) -> Trace {
        let (mut random, mut at) = (SplitMix(seed), 0.0);
        for arrival in &mut self.arrivals {
            // Uniform over [0, 1).
            let unit = (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
            at -= (1.0 - unit).ln();
            arrival.at = Seconds(at);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_arrivals_keep_the_lengths_and_come_once_a_second() {
        let trace = Trace::bursts(7, Seconds(120.0), 14.0, Seconds(20.0));
        let drawn = trace.clone().poisson(3);
        assert_eq!(drawn, trace.clone().poisson(3));
        let lengths = |trace: &Trace| -> Vec<_> {
            trace.arrivals.iter().map(|a| (a.prompt, a.output)).collect()
        };
        assert_eq!(lengths(&drawn), lengths(&trace));
        assert!(drawn.arrivals.is_sorted_by(|a, b| a.at <= b.at));
        let last = drawn.arrivals.last().map_or(0.0, |last| last.at.get());
        let mean = last / drawn.arrivals.len() as f64;
        assert!((0.9..1.1).contains(&mean), "{mean}");
    }

    #[test]
    fn another_draw_has_the_same_requests_at_nearly_the_same_times() {
        let trace = Trace::bursts(7, Seconds(60.0), 14.0, Seconds(20.0));
        assert_eq!(trace.clone().resampled(0), trace);
        let other = trace.clone().resampled(4);
        assert_eq!(other, trace.clone().resampled(4));
        assert_ne!(other, trace.clone().resampled(5));
        let lengths = |trace: &Trace| {
            let mut all: Vec<_> = trace.arrivals.iter().map(|a| (a.prompt, a.output)).collect();
            all.sort();
            all
        };
        assert_eq!(lengths(&other), lengths(&trace));
        let far =
            trace.arrivals.iter().zip(&other.arrivals).map(|(a, b)| (a.at - b.at).get().abs());
        assert!(far.fold(0.0, f64::max) <= 2.0 * JITTER);
    }
}
