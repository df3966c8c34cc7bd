//! What legs cost, learned online, per backend; how long answers are, over all of them.

use tidegate_cost::{DecodeFit, DecodeModel, PrefillFit, PrefillModel};
use tidegate_terms::{BackendId, Moment, Tokens};

use crate::fleet::{Estimates, Fleet};
use crate::learn::Observation;

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
    pub fn new(priors: Vec<Priors>, estimates: Estimates) -> Fits {
        let fit = |priors: Priors| BackendFit {
            prefill: PrefillFit::new(priors.prefill),
            decode: DecodeFit::new(priors.decode),
            before: None,
        };
        Fits { backends: priors.into_iter().map(fit).collect(), estimates }
    }

    /// One observation.
    pub fn take(&mut self, observation: Observation) {
        match observation {
            Observation::Prefill { backend, uncached, cached, took } => {
                self.backends[backend.index()].prefill.observe(uncached, cached, took);
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
