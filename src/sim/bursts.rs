//! Speculative decoding: an engine drafts tokens and accepts several a step
//! (docs/spec/engine-model.md#bursts). One draw a step holds for all streams of the engine, so that
//! a step costs the same for any number of streams.

use crate::random::SplitMix;

/// Source of the number of tokens that each stream receives from a step.
#[derive(Clone, Debug)]
pub struct Bursts {
    drafts: u64,
    /// Probability that a draft token is accepted if all before it were.
    acceptance: f64,
    random: SplitMix,
}

impl Bursts {
    /// Largest mean: beyond it the acceptance of drafts is no longer realistic.
    pub const MEAN_MAX: f64 = 8.0;

    /// Creates a source of `mean` tokens a step on average, from 1 (one token in every step) to
    /// [`MEAN_MAX`](Self::MEAN_MAX). Equal seeds give equal draws.
    pub fn new(mean: f64, seed: u64) -> Bursts {
        let mean = mean.clamp(1.0, Bursts::MEAN_MAX);
        let drafts = (2.0 * (mean - 1.0)).ceil() as u64;
        Bursts { drafts, acceptance: acceptance(mean, drafts), random: SplitMix(seed) }
    }

    /// Returns the number of draft tokens that a step verifies for each stream.
    pub fn drafts(&self) -> u64 {
        self.drafts
    }

    /// Draws the number of tokens of a step: 1 and the accepted drafts.
    pub fn draw(&mut self) -> u64 {
        let accepted = (0..self.drafts).take_while(|_| self.random.unit() <= self.acceptance);
        1 + accepted.count() as u64
    }
}

/// Solves mean = 1 + a + a² + … + a^drafts by bisection.
fn acceptance(mean: f64, drafts: u64) -> f64 {
    let tokens = |a: f64| (0..=drafts as i32).map(|n| a.powi(n)).sum::<f64>();
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = (low + high) / 2.0;
        if tokens(middle) < mean { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_mean_and_at_most_all_drafts() {
        for (mean, drafts) in [(1.0, 0), (1.5, 1), (2.0, 2), (3.0, 4)] {
            let mut bursts = Bursts::new(mean, 7);
            assert_eq!(bursts.drafts(), drafts);
            let draws: Vec<u64> = (0..100_000).map(|_| bursts.draw()).collect();
            let sum: u64 = draws.iter().sum();
            assert!((sum as f64 / draws.len() as f64 - mean).abs() < 0.02, "{mean}");
            assert!(draws.iter().all(|draw| (1..=1 + drafts).contains(draw)));
        }
    }
}
