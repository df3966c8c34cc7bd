//! Gaps between the tokens of a stream (ITL). A stream receives a token from each step of its engine,
//! so its gaps are the durations of the steps since its first token.

use std::collections::VecDeque;
use tidegate_types::{DurationBuckets, Moment, Seconds};

/// Buckets: 14 octaves from 1 ms on, 32 buckets each, about 3 % wide.
const BUCKETS: DurationBuckets = DurationBuckets { first_octave: 20, octaves: 14, sub_bits: 5 };

/// Distribution of the gaps of all streams of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GapHistogram {
    counts: Vec<u64>,
    /// Largest gap, in nanoseconds.
    max: u64,
}

impl Default for GapHistogram {
    fn default() -> GapHistogram {
        GapHistogram { counts: vec![0; BUCKETS.count()], max: 0 }
    }
}

impl GapHistogram {
    /// Adds `times` gaps of this length.
    pub fn add(&mut self, gap: Seconds, times: u64) {
        let nanos = (gap.get() * 1e9) as u64;
        self.counts[BUCKETS.of(nanos)] += times;
        if times > 0 {
            self.max = self.max.max(nanos);
        }
    }

    /// Returns the number of gaps.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the quantile `share` (0..1), at most the largest gap; `None` without a gap.
    pub fn quantile(&self, share: f64) -> Option<Seconds> {
        let quantile = BUCKETS.quantile(&self.counts, share)?;
        Some(quantile.min(self.max()))
    }

    /// Returns the largest gap; zero without one.
    pub fn max(&self) -> Seconds {
        Seconds(self.max as f64 / 1e9)
    }
}

/// Durations of one engine's steps, for the longest step since a given one. Only steps that are longer
/// than every later one are kept: an addition costs O(1) amortised, a query O(log steps).
#[derive(Clone, Debug, Default)]
pub(crate) struct StepDurations {
    /// Step numbers in ascending order, durations in descending order.
    longest: VecDeque<(u64, Seconds)>,
    /// End of the last step.
    pub(crate) ended: Moment,
}

impl StepDurations {
    /// Adds the duration of step number `step`, which ended at `ended`.
    pub(crate) fn add(&mut self, step: u64, took: Seconds, ended: Moment) {
        while self.longest.back().is_some_and(|(_, shorter)| *shorter <= took) {
            self.longest.pop_back();
        }
        self.longest.push_back((step, took));
        self.ended = ended;
    }

    /// Returns the longest step after number `step`.
    pub(crate) fn longest_after(&self, step: u64) -> Seconds {
        let at = self.longest.partition_point(|(number, _)| *number <= step);
        self.longest.get(at).map_or(Seconds::ZERO, |(_, took)| *took)
    }

    /// Removes all steps; called when no stream is running.
    pub(crate) fn clear(&mut self) {
        self.longest.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_longest_step_is_that_of_all_later_steps(steps in prop::collection::vec(1_u32..50, 1..60), after in 0_usize..60) {
            let mut durations = StepDurations::default();
            for (index, took) in steps.iter().enumerate() {
                durations.add(index as u64 + 1, Seconds(f64::from(*took)), Moment::START);
            }
            let expected = steps.iter().skip(after).max().copied().unwrap_or(0);
            prop_assert_eq!(durations.longest_after(after as u64).get(), f64::from(expected));
        }
    }

    #[test]
    fn a_quantile_is_at_most_the_largest_gap() {
        let mut gaps = GapHistogram::default();
        // At the lower edge of its bucket, whose upper bound is 3 % above.
        gaps.add(Seconds(0.0671088641), 100);
        gaps.add(Seconds(1.0), 0);
        assert!((gaps.max().get() - 0.0671088641).abs() < 1e-9);
        for share in [0.5, 0.99, 1.0] {
            assert_eq!(gaps.quantile(share), Some(gaps.max()), "{share}");
        }
        let mut short = GapHistogram::default();
        short.add(Seconds(1e-6), 3);
        assert_eq!(short.quantile(0.99), Some(Seconds(1e-6)), "below the first bucket");
    }

    #[test]
    fn quantiles_are_within_three_percent() {
        let mut gaps = GapHistogram::default();
        assert_eq!(gaps.quantile(0.99), None);
        gaps.add(Seconds(0.020), 990);
        gaps.add(Seconds(0.150), 10);
        let quantile = |share| gaps.quantile(share).unwrap().get();
        assert!((quantile(0.5) / 0.020 - 1.0).abs() < 0.03, "{}", quantile(0.5));
        assert!((quantile(0.995) / 0.150 - 1.0).abs() < 0.03, "{}", quantile(0.995));
    }
}
