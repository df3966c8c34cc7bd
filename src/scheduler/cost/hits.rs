//! Hit share: the share of a predicted prefix cache hit that is real. The prefix index predicts the
//! blocks that an engine holds; whether the engine reuses them depends on its flags, its model and
//! its memory. The share is learned from the cached tokens that the engine reports, or from the
//! duration of its prefills.

use tidegate_types::Seconds;

/// Decay per observation: about the last ten determine the share, and after four contradicting
/// observations it is nearer to them than to the earlier value. Not tuned.
const KEEPS: f64 = 0.9;
/// Least ratio of full to cached prefill time at which a duration is evidence. Source: prefills of
/// equal size vary by 10 to 20 %.
const CLEAR: f64 = 1.5;
/// Factor beyond the full or the cached prefill time from which a duration shows a wrong cost model
/// instead of the state of the cache.
const BEYOND: f64 = 1.5;
/// Distance from 0 or 1 below which a share is rounded: noise of the duration.
const NEAR: f64 = 0.2;

/// Exponentially decaying estimate of the hit share: a Beta estimate whose prior of one real hit
/// decays like an observation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HitShare {
    real: f64,
    seen: f64,
}

/// Evidence about a predicted hit from the duration of a prefill.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HitEvidence {
    /// The predicted times with and without the hit are too close.
    Unclear,
    /// Real share of the hit, 0 to 1.
    Share(f64),
    /// Slower than a full prefill: the cost model predicts too little.
    Slower,
    /// Faster than a prefill of the uncached rest: the cost model predicts too much.
    Faster,
}

impl Default for HitShare {
    /// A share of 1: predictions count in full.
    fn default() -> HitShare {
        HitShare { real: 1.0, seen: 1.0 }
    }
}

impl HitShare {
    /// Returns an estimate with the weight of many observations of `share`.
    pub fn known(share: f64) -> HitShare {
        let seen = 1.0 / (1.0 - KEEPS);
        HitShare { real: share.clamp(0.0, 1.0) * seen, seen }
    }

    /// Adds an observation: `share` of a predicted hit was real. `weight` is 1 for one prefill.
    /// Non-finite values and non-positive weights are ignored.
    pub fn observe(&mut self, share: f64, weight: f64) {
        if !(share.is_finite() && weight.is_finite() && weight > 0.0) {
            return;
        }
        let keeps = KEEPS.powf(weight);
        // Equivalent to `weight` observations of weight 1.
        let adds = (1.0 - keeps) / (1.0 - KEEPS);
        self.real = self.real * keeps + share.clamp(0.0, 1.0) * adds;
        self.seen = self.seen * keeps + adds;
    }

    /// Returns the estimated share, 0 to 1.
    pub fn share(&self) -> f64 {
        (self.real / self.seen).clamp(0.0, 1.0)
    }
}

impl HitEvidence {
    /// Returns the evidence of a prefill that took `took`, given the predictions `full` with
    /// nothing cached and `hit` with the predicted hit.
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
    fn the_share_starts_at_one_and_falls_within_a_few_prefills() {
        assert_eq!(after(&[]), 1.0);
        assert!(after(&[0.0]) < 0.5);
        assert!(after(&[0.0; 6]) < 0.12);
        assert!(after(&[0.0; 40]) < 0.01);
    }

    #[test]
    fn the_share_rises_when_the_cache_works_again() {
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
    fn a_duration_is_evidence_only_if_the_predictions_differ_and_one_explains_it() {
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
        fn the_share_stays_within_0_and_1_and_converges(
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
