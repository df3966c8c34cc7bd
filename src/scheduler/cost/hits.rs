//! How much of a predicted prefix-cache hit is real. The prefix index says what an engine should
//! hold; whether the engine then computes it again depends on its flags, its model and its memory.
//! The share is learned from what the engine reports, or from how long its prefills take.

use tidegate_types::Seconds;

/// An older observation counts this much for each newer one: about the last ten decide, and after
/// four that contradict the share is nearer to them than to what was before. Not tuned.
const KEEPS: f64 = 0.9;
/// The two hypotheses must differ by this factor before a duration can tell them apart: prefills of
/// equal size vary by a tenth or two.
const CLEAR: f64 = 1.5;
/// A prefill that is slower than a full one, or faster than a cached one, by this factor says that
/// the cost model is wrong, and nothing about the cache.
const BEYOND: f64 = 1.5;
/// A share so near to all or nothing is noise of the duration.
const NEAR: f64 = 0.2;

/// Exponentially forgetting estimate of the real share of predicted hits: a Beta estimate whose
/// prior, one hit that was real, is forgotten like any observation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HitShare {
    real: f64,
    seen: f64,
}

/// What a prefill's duration says of a predicted hit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HitEvidence {
    /// The hypotheses are too near to each other.
    Unclear,
    /// The real share of the hit, 0 to 1.
    Share(f64),
    /// Slower than computing everything: the cost model is too cheap.
    Slower,
    /// Faster than computing only the rest: the cost model is too dear.
    Faster,
}

impl Default for HitShare {
    /// Believes.
    fn default() -> HitShare {
        HitShare { real: 1.0, seen: 1.0 }
    }
}

impl HitShare {
    /// A share that many observations agree on.
    pub fn known(share: f64) -> HitShare {
        let seen = 1.0 / (1.0 - KEEPS);
        HitShare { real: share.clamp(0.0, 1.0) * seen, seen }
    }

    /// Of a predicted hit, `share` was real. `weight` is 1 for one prefill; senseless values are
    /// ignored.
    pub fn observe(&mut self, share: f64, weight: f64) {
        if !(share.is_finite() && weight.is_finite() && weight > 0.0) {
            return;
        }
        let keeps = KEEPS.powf(weight);
        // As many observations of weight 1 as `weight` says.
        let adds = (1.0 - keeps) / (1.0 - KEEPS);
        self.real = self.real * keeps + share.clamp(0.0, 1.0) * adds;
        self.seen = self.seen * keeps + adds;
    }

    /// The share to count on, 0 to 1.
    pub fn share(&self) -> f64 {
        (self.real / self.seen).clamp(0.0, 1.0)
    }
}

impl HitEvidence {
    /// A prefill took `took`; with nothing cached it should take `full`, with the predicted hit
    /// `hit`.
    pub fn of_duration(full: Seconds, hit: Seconds, took: Seconds) -> HitEvidence {
        let apart = (full - hit).get();
        let sane = took > Seconds::ZERO && hit > Seconds::ZERO;
        if !sane || full < hit * CLEAR {
            return HitEvidence::Unclear;
        }
        if took > full * BEYOND {
            return HitEvidence::Slower;
        }
        if took * BEYOND < hit {
            return HitEvidence::Faster;
        }
        match ((full - took).get() / apart).clamp(0.0, 1.0) {
            share if share < NEAR => HitEvidence::Share(0.0),
            share if share > 1.0 - NEAR => HitEvidence::Share(1.0),
            share => HitEvidence::Share(share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(shares: &[f64]) -> f64 {
        let mut estimate = HitShare::default();
        for share in shares {
            estimate.observe(*share, 1.0);
        }
        estimate.share()
    }

    #[test]
    fn it_starts_believing_and_stops_within_a_few_prefills() {
        assert_eq!(after(&[]), 1.0);
        assert!(after(&[0.0]) < 0.5);
        assert!(after(&[0.0; 6]) < 0.12);
        assert!(after(&[0.0; 40]) < 0.01);
    }

    #[test]
    fn a_cache_that_works_again_is_believed_again() {
        let mut shares = vec![0.0; 200];
        shares.extend([1.0; 8]);
        assert!(after(&shares) > 0.5);
        shares.extend([1.0; 20]);
        assert!(after(&shares) > 0.9);
    }

    #[test]
    fn a_weight_counts_as_that_many_observations() {
        let (mut one, mut many) = (HitShare::default(), HitShare::default());
        one.observe(0.25, 5.0);
        (0..5).for_each(|_| many.observe(0.25, 1.0));
        assert!((one.share() - many.share()).abs() < 1e-9);
    }

    #[test]
    fn a_duration_tells_only_where_the_hypotheses_differ_and_one_of_them_fits() {
        let of =
            |full, hit, took| HitEvidence::of_duration(Seconds(full), Seconds(hit), Seconds(took));
        assert_eq!(of(0.10, 0.08, 0.10), HitEvidence::Unclear);
        assert_eq!(of(0.10, 0.02, 0.11), HitEvidence::Share(0.0));
        assert_eq!(of(0.10, 0.02, 0.025), HitEvidence::Share(1.0));
        assert_eq!(of(0.75, 0.25, 0.5), HitEvidence::Share(0.5));
        assert_eq!(of(0.10, 0.02, 0.3), HitEvidence::Slower);
        assert_eq!(of(0.10, 0.02, 0.01), HitEvidence::Faster);
        assert_eq!(of(0.10, 0.0, 0.01), HitEvidence::Unclear);
        assert_eq!(of(0.10, 0.02, f64::NAN), HitEvidence::Unclear);
    }

    proptest! {
        #[test]
        fn the_share_stays_a_share_and_follows_what_lasts(
            before in prop::collection::vec((any::<f64>(), -1.0..20.0f64), 0..60),
            truth in 0.0..1.0f64,
        ) {
            let mut estimate = HitShare::default();
            for (share, weight) in before {
                estimate.observe(share, weight);
                prop_assert!((0.0..=1.0).contains(&estimate.share()));
            }
            for _ in 0..60 {
                estimate.observe(truth, 1.0);
            }
            prop_assert!((estimate.share() - truth).abs() < 0.05, "{} {truth}", estimate.share());
        }
    }
}
