//! Logarithmic buckets for durations: every octave is divided evenly.

use crate::Seconds;

/// Layout of a histogram of durations. Shorter durations count in the first bucket, longer ones in
/// the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationBuckets {
    /// Start of the first octave, as a power of two in nanoseconds: 20 is about 1 ms.
    pub first_octave: u32,
    /// Number of octaves.
    pub octaves: u32,
    /// Buckets per octave, as a power of two; at most `first_octave`.
    pub sub_bits: u32,
}

impl DurationBuckets {
    /// Returns the number of buckets.
    pub const fn count(&self) -> usize {
        (self.octaves << self.sub_bits) as usize
    }

    /// Returns the bucket of a duration: the octave, then the bits below the leading bit.
    pub fn of(&self, nanos: u64) -> usize {
        let octave = (u64::BITS - 1).saturating_sub(nanos.leading_zeros());
        if octave < self.first_octave {
            return 0;
        }
        let mask = (1_u64 << self.sub_bits) - 1;
        let part = (nanos >> (octave - self.sub_bits)) & mask;
        let bucket = (u64::from(octave - self.first_octave) << self.sub_bits) + part;
        (bucket as usize).min(self.count() - 1)
    }

    /// Returns the upper bound of a bucket.
    pub fn bound(&self, bucket: usize) -> Seconds {
        let parts = 1_usize << self.sub_bits;
        let octave = (1_u64 << (self.first_octave + (bucket / parts) as u32)) as f64;
        let part = (bucket % parts + 1) as f64 / parts as f64;
        Seconds(octave * (1.0 + part) / 1e9)
    }

    /// Returns the quantile `share` (0..1) of the counted durations, interpolated within its bucket;
    /// `None` without a count.
    pub fn quantile<C: Copy + Into<u64>>(&self, counts: &[C], share: f64) -> Option<Seconds> {
        let all: u64 = counts.iter().map(|count| (*count).into()).sum();
        let rank = ((share * all as f64).ceil() as u64).max(1);
        let mut below = 0;
        let bucket = counts.iter().position(|count| {
            below += (*count).into();
            below >= rank
        })?;
        let count: u64 = counts[bucket].into();
        let within = (rank + count - below) as f64 / count.max(1) as f64;
        let lower = bucket.checked_sub(1).map_or(Seconds::ZERO, |before| self.bound(before));
        Some(lower + (self.bound(bucket) - lower) * within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUARTERS: DurationBuckets =
        DurationBuckets { first_octave: 20, octaves: 14, sub_bits: 2 };

    #[test]
    fn a_duration_counts_below_the_bound_of_its_bucket_and_above_the_one_before() {
        let fine = DurationBuckets { sub_bits: 5, ..QUARTERS };
        for buckets in [QUARTERS, fine] {
            for nanos in [1_100_000, 1_500_000, 25_000_000, 30_123_456, 999_999_999, 9_000_000_000]
            {
                let (bucket, seconds) = (buckets.of(nanos), nanos as f64 / 1e9);
                assert!(seconds <= buckets.bound(bucket).get(), "{nanos}");
                assert!(bucket == 0 || seconds >= buckets.bound(bucket - 1).get(), "{nanos}");
            }
            let last = buckets.count() - 1;
            assert_eq!((buckets.of(0), buckets.of(1000), buckets.of(u64::MAX)), (0, 0, last));
        }
    }

    #[test]
    fn a_quantile_is_interpolated_within_its_bucket() {
        let mut counts = [0_u32; QUARTERS.count()];
        assert_eq!(QUARTERS.quantile(&counts, 0.5), None);
        (counts[3], counts[20]) = (90, 10);
        let bound = |bucket: usize| QUARTERS.bound(bucket);
        let middle = bound(2) + (bound(3) - bound(2)) * 0.5;
        let quantile = |share| QUARTERS.quantile(&counts, share).unwrap();
        assert!((quantile(0.45) - middle).get().abs() < 1e-9);
        assert_eq!(quantile(0.9), bound(3));
        assert!(quantile(0.99) > bound(19) && quantile(0.99) < bound(20));
    }
}
