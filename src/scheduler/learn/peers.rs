//! Peer correction: the cost of a backend without observations of one kind of work is its prior,
//! with the correction of the median peer, times its own slowness at the other kind of work.

use crate::cost::{DecodeModel, PrefillModel};
use crate::tuning::REFERENCE_STREAMS;
use tidegate_types::{Seconds, Tokens};

/// Prompt tokens at which two models are compared. Not tuned.
const REFERENCE_PROMPT: Tokens = Tokens(2048);

/// A cost model with a prior.
pub(super) trait Cost: Copy + PartialEq {
    /// Returns the duration of a reference amount of work.
    fn reference(&self) -> Seconds;
    /// Returns the model with all durations multiplied by `factor`.
    fn scaled(&self, factor: f64) -> Self;
}

/// A backend's prior and its learned model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Learned<M> {
    pub prior: M,
    pub model: M,
}

impl Cost for PrefillModel {
    fn reference(&self) -> Seconds {
        self.predict(REFERENCE_PROMPT, Tokens::ZERO)
    }

    fn scaled(&self, factor: f64) -> PrefillModel {
        PrefillModel {
            base: self.base * factor,
            per_token: self.per_token * factor,
            per_attention: self.per_attention * factor,
        }
    }
}

impl Cost for DecodeModel {
    fn reference(&self) -> Seconds {
        let kv = REFERENCE_PROMPT.get() * u64::from(REFERENCE_STREAMS);
        self.step(REFERENCE_STREAMS, Tokens(kv))
    }

    fn scaled(&self, factor: f64) -> DecodeModel {
        DecodeModel {
            base: self.base * factor,
            per_stream: self.per_stream * factor,
            per_kv_token: self.per_kv_token * factor,
            ..*self
        }
    }
}

impl<M: Cost> Learned<M> {
    /// Returns the correction: learned duration divided by prior duration.
    fn ratio(&self) -> f64 {
        self.model.reference() / self.prior.reference()
    }

    /// Returns the factor by which the backend is slower than `peer`, relative to both priors.
    pub fn slowness(&self, peer: &Learned<M>) -> f64 {
        self.ratio() / peer.ratio()
    }

    /// Returns a backend's `prior` with this peer's correction: the peer's model if both started from
    /// the same prior, else the prior times the peer's ratio of learned to prior cost.
    pub fn correct(&self, prior: M) -> M {
        if self.prior == prior { self.model } else { prior.scaled(self.ratio()) }
    }
}

/// Returns the peer with the median correction, which fewer than half slow peers do not change.
pub(super) fn median<M: Cost>(peers: impl Iterator<Item = Learned<M>>) -> Option<Learned<M>> {
    let mut seen: Vec<Learned<M>> = peers.collect();
    seen.retain(|peer| peer.ratio().is_finite() && peer.ratio() > 0.0);
    seen.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
    seen.get(seen.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(factor: f64) -> PrefillModel {
        PrefillModel::default().scaled(factor)
    }

    fn learned(prior: f64, model: f64) -> Learned<PrefillModel> {
        Learned { prior: at(prior), model: at(model) }
    }

    #[test]
    fn an_unobserved_backend_takes_the_correction_of_the_median_peer() {
        let peers = [learned(2.0, 2.4), learned(2.0, 1.0), learned(2.0, 1.1)];
        let peer = median(peers.into_iter()).unwrap();
        assert_eq!(peer.correct(at(2.0)), at(1.1));
        // Other hardware keeps its proportion to the peers.
        let other = learned(2.0, 1.0).correct(at(6.0)).reference() / at(3.0).reference();
        assert!((other - 1.0).abs() < 1e-9, "{other}");
        assert!((learned(1.0, 2.0).slowness(&learned(2.0, 2.0)) - 2.0).abs() < 1e-9);
        assert!(median::<PrefillModel>(std::iter::empty()).is_none());
    }
}
