//! Distribution of the gaps between a stream's chunks (ITL): counts in buckets of a quarter octave.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use tidegate_types::Seconds;

/// Number of buckets: 14 octaves from 1 ms on, 4 buckets each. Shorter gaps count in the first and
/// longer ones in the last.
pub const GAP_BUCKETS: usize = 56;
/// Upper bound of the first octave, as a power of two in nanoseconds: 2^20 ns is about 1 ms.
const FIRST_OCTAVE: u32 = 20;

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
        let bucket = &self.0[bucket(nanos)];
        bucket.store(bucket.load(Relaxed).saturating_add(1), Relaxed);
    }

    /// Adds the counts to `sums`.
    pub fn add_to(&self, sums: &mut [u32; GAP_BUCKETS]) {
        for (sum, count) in sums.iter_mut().zip(&self.0) {
            *sum += u32::from(count.load(Relaxed));
        }
    }
}

/// Returns the bucket of a gap: the octave, then the two bits below its leading bit.
fn bucket(nanos: u64) -> usize {
    let octave = (u64::BITS - 1).saturating_sub(nanos.leading_zeros());
    if octave < FIRST_OCTAVE {
        return 0;
    }
    let quarter = (nanos >> (octave - 2)) & 3;
    let bucket = (octave - FIRST_OCTAVE) as usize * 4 + quarter as usize;
    bucket.min(GAP_BUCKETS - 1)
}

/// Returns the upper bound of a bucket.
pub fn gap_bound(bucket: usize) -> Seconds {
    let octave = (1_u64 << (FIRST_OCTAVE + (bucket / 4) as u32)) as f64;
    Seconds(octave * (1.25 + 0.25 * (bucket % 4) as f64) / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_counted_below_the_bound_of_its_bucket_and_above_the_one_before() {
        for nanos in [1_100_000, 1_500_000, 25_000_000, 30_123_456, 999_999_999, 9_000_000_000] {
            let bucket = bucket(nanos);
            let seconds = nanos as f64 / 1e9;
            assert!(seconds <= gap_bound(bucket).get(), "{nanos}");
            assert!(bucket == 0 || seconds >= gap_bound(bucket - 1).get(), "{nanos}");
        }
        assert_eq!((bucket(0), bucket(1000), bucket(u64::MAX)), (0, 0, GAP_BUCKETS - 1));
    }

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
