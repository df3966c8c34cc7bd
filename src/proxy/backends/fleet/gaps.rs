//! Distribution of the gaps between a stream's chunks (ITL): counts in buckets of a quarter octave.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use tidegate_types::DurationBuckets;

/// Buckets: 14 octaves from 1 ms on, 4 buckets each.
pub const GAPS: DurationBuckets = DurationBuckets { first_octave: 20, octaves: 14, sub_bits: 2 };
/// Number of buckets.
pub const GAP_BUCKETS: usize = GAPS.count();

/// Gaps of one stream. The request's own task is the only writer.
#[derive(Debug)]
pub struct Gaps([AtomicU16; GAP_BUCKETS]);

impl Default for Gaps {
    fn default() -> Gaps {
        Gaps(std::array::from_fn(|_| AtomicU16::new(0)))
    }
}

impl Gaps {
    /// Counts a gap of `nanos`. A bucket saturates at 65,535.
    pub fn note(&self, nanos: u64) {
        let bucket = &self.0[GAPS.of(nanos)];
        bucket.store(bucket.load(Relaxed).saturating_add(1), Relaxed);
    }

    /// Adds the counts to `sums`.
    pub fn add_to(&self, sums: &mut [u32; GAP_BUCKETS]) {
        for (sum, count) in sums.iter_mut().zip(&self.0) {
            *sum += u32::from(count.load(Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_saturate() {
        let (gaps, mut sums) = (Gaps::default(), [0; GAP_BUCKETS]);
        for _ in 0..70_000 {
            gaps.note(20_000_000);
        }
        gaps.note(1);
        gaps.add_to(&mut sums);
        assert_eq!(sums.iter().sum::<u32>(), u32::from(u16::MAX) + 1);
        assert_eq!(sums[0], 1);
    }
}
