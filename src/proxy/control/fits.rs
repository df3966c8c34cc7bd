//! What legs cost, learned online, per backend; how long answers are, over all of them.

use tidegate_cost::{DecodeFit, DecodeModel, PrefillFit, PrefillModel};
use tidegate_terms::{BackendId, Moment, Seconds, Tokens};

use crate::fleet::{Estimates, Fleet};
use crate::learn::{Beside, Observation};

/// What an operator knows of a backend's costs before any was observed.
#[derive(Clone, Copy, Debug)]
pub struct Priors {
    /// Of a prefill.
    pub prefill: PrefillModel,
    /// Of a decode step.
    pub decode: DecodeModel,
}

/// All fits.
pub struct Fits {
    backends: Vec<BackendFit>,
    estimates: Estimates,
    /// The engines' `max_num_batched_tokens`.
    chunk: Tokens,
}

struct BackendFit {
    prefill: PrefillFit,
    decode: DecodeFit,
    /// The account at the last look.
    before: Option<Look>,
}

/// A backend's decode work at one moment.
#[derive(Clone, Copy)]
struct Look {
    at: Moment,
    emitted: Tokens,
    streams: u32,
}

impl Fits {
    /// Fits that start from the operator's knowledge.
    pub fn new(priors: Vec<Priors>, estimates: Estimates, chunk: Tokens) -> Fits {
        let fit = |priors: Priors| BackendFit {
            prefill: PrefillFit::new(priors.prefill),
            decode: DecodeFit::new(priors.decode),
            before: None,
        };
        Fits { backends: priors.into_iter().map(fit).collect(), estimates, chunk }
    }

    /// One observation.
    pub fn take(&mut self, observation: Observation) {
        match observation {
            Observation::Prefill { backend, uncached, cached, took, beside } => {
                let fit = &mut self.backends[backend.index()];
                let steps = uncached.get().div_ceil(self.chunk.get().max(1));
                let alone = took - held_up(&fit.decode.model(), beside, steps);
                fit.prefill.observe(uncached, cached, alone);
            }
            Observation::Finished { max_tokens, counted, output, prompt, features } => {
                self.estimates.output.observe(max_tokens, counted, output);
                if let (Some(features), Some(prompt)) = (features, prompt) {
                    self.estimates.bytes.observe(&features, prompt);
                }
            }
            Observation::HealthChanged => {}
        }
    }

    /// Look at every backend's decode work since the last look. The mean gap between two tokens
    /// of one stream is the time that passed, times the streams, over the tokens. A backend that
    /// prefilled meanwhile, or whose streams came and went, teaches nothing about decode steps.
    pub fn watch_decodes(&mut self, fleet: &Fleet, now: Moment) {
        for (backend, fit) in fleet.backends.iter().zip(&mut self.backends) {
            let balance = backend.account.balance();
            let look = Look { at: now, emitted: balance.emitted, streams: balance.streams };
            let before = fit.before.replace(look);
            let Some(before) = before.filter(|_| balance.prefill_legs == 0) else { continue };
            let tokens = (look.emitted - before.emitted).as_f64();
            if before.streams == look.streams && look.streams > 0 && tokens > 0.0 {
                let gap = (now - before.at) * (f64::from(look.streams) / tokens);
                fit.decode.observe(look.streams, balance.kv, gap);
            }
        }
    }

    /// A backend's costs as fitted so far. One of which nothing was said or seen yet is taken to be
    /// like its peers: with a guess that is dearer than what they turned out to cost, it would never
    /// be given anything to be judged by.
    pub fn models(
        &self,
        backend: BackendId,
        peers: impl Iterator<Item = BackendId> + Clone,
    ) -> (PrefillModel, DecodeModel) {
        let fit = &self.backends[backend.index()];
        let mut peers = peers.map(|peer| &self.backends[peer.index()]);
        let (mut prefill, mut decode) = (fit.prefill.model(), fit.decode.model());
        if fit.prefill.observations() == 0 && prefill == PrefillModel::default() {
            let seen = peers.clone().find(|peer| peer.prefill.observations() > 0);
            prefill = seen.map_or(prefill, |peer| peer.prefill.model());
        }
        if fit.decode.observations() == 0 && decode == DecodeModel::default() {
            let seen = peers.find(|peer| peer.decode.observations() > 0);
            decode = seen.map_or(decode, |peer| peer.decode.model());
        }
        (prefill, decode)
    }

    /// Lengths as fitted so far.
    pub fn estimates(&self) -> &Estimates {
        &self.estimates
    }
}

/// How much longer a prefill of `steps` chunks takes beside streams than alone: their tokens in each
/// of its steps, and the rest of the step it came into, half of one in the mean. Placement adds both
/// where it is asked for: learned as the prefill's own cost they would count twice.
fn held_up(model: &DecodeModel, beside: Beside, steps: u64) -> Seconds {
    let Beside { streams, kv, at_once } = beside;
    if streams == 0 {
        return Seconds::ZERO;
    }
    let rest = if at_once { model.step(streams, kv) / 2.0 } else { Seconds::ZERO };
    model.beside_prefill(streams, kv) * steps as f64 + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_cost::{ByteEstimator, OutputEstimate};

    #[test]
    fn a_prefill_beside_streams_teaches_what_it_takes_alone() {
        let truth = PrefillModel::default();
        let decode = DecodeModel::default();
        let estimates =
            Estimates { bytes: ByteEstimator::default(), output: OutputEstimate::new(Tokens(1)) };
        let prior = PrefillModel { base: truth.base * 3.0, ..truth };
        let mut fits = Fits::new(vec![Priors { prefill: prior, decode }], estimates, Tokens(2048));
        let at = |n: u64| Tokens(500 * (1 + n % 7));
        for n in 0..200 {
            let (uncached, cached) = (at(n), Tokens::ZERO);
            let at_once = n.is_multiple_of(2);
            let beside = Beside { streams: 20 + n as u32, kv: Tokens(40_000), at_once };
            let steps = uncached.get().div_ceil(2048);
            let took = truth.predict(uncached, cached) + held_up(&decode, beside, steps);
            let backend = BackendId(0);
            fits.take(Observation::Prefill { backend, uncached, cached, took, beside });
        }
        let (learned, _) = fits.models(BackendId(0), std::iter::empty());
        for n in 0..7 {
            let (is, should) =
                (learned.predict(at(n), Tokens::ZERO), truth.predict(at(n), Tokens::ZERO));
            assert!((is / should - 1.0).abs() < 0.05, "{is} {should}");
        }
    }
}
