//! The cost models learned online, one fit a backend. Each wraps [`Robust`] with the features of
//! its model; none of them knows where an observation came from.

use crate::cost::model::attention_pairs;
use crate::cost::robust::Robust;
use crate::cost::{DecodeModel, PrefillModel, TransferModel};
use tidegate_types::{Seconds, Tokens};

/// Beyond any context window; larger counts are a broken engine's.
const TOKENS_MAX: u64 = 100_000_000;

/// Below so many tokens that a new one attends to in the mean, attention is a few hundredths of a
/// prefill on a transformer of any size, and the fixed cost, timers and neighbours are more: what
/// fits there by chance makes long prompts several times as dear.
const ATTENDED_MIN: f64 = 512.0;

/// A token costs at least this share of a step's fixed cost. Physics: a step whose tokens compute for
/// as long as reading the weights takes has 185 tokens for Llama-70B (docs/spec/engine-model.md), and 1,700
/// for a mixture of experts that reads eighteen times the weights it computes with; on CPUs fewer.
/// Without a bound, steps that all took the same once left a fit of 44 ms and nothing for a token.
const TOKEN_SHARE_MIN: f64 = 1.0 / 2048.0;

/// And at least this much: ten million tokens a second is beyond any engine.
const TOKEN_MIN: f64 = 1e-7;

/// Prompts that one engine computed together: their tokens add up, the fixed cost of the step does
/// not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PrefillBatch {
    new: Tokens,
    context: Tokens,
    pairs: f64,
}

/// Learns a [`PrefillModel`].
#[derive(Clone, Debug)]
pub struct PrefillFit {
    fit: Robust<3>,
}

/// Learns a [`DecodeModel`].
#[derive(Clone, Debug)]
pub struct DecodeFit {
    fit: Robust<3>,
    /// From the prior, and never learned: two lines that meet somewhere are no linear fit.
    free_streams: u32,
}

/// Learns a [`TransferModel`].
#[derive(Clone, Debug)]
pub struct TransferFit {
    fit: Robust<2>,
}

impl PrefillBatch {
    /// One prompt of `new` tokens after `context` cached ones.
    pub fn of(new: Tokens, context: Tokens) -> PrefillBatch {
        PrefillBatch { new, context, pairs: attention_pairs(new, context) }
    }

    /// Another one joins.
    pub fn add(&mut self, other: PrefillBatch) {
        self.new += other.new;
        self.context += other.context;
        self.pairs += other.pairs;
    }

    /// Tokens that are computed.
    pub fn tokens(&self) -> Tokens {
        self.new
    }

    /// How long it takes by `model`. Nothing to compute takes no time.
    pub fn predicted(&self, model: &PrefillModel) -> Seconds {
        match self.new {
            Tokens::ZERO => Seconds::ZERO,
            new => model.base + model.per_token * new.as_f64() + model.per_attention * self.pairs,
        }
    }
}

impl PrefillFit {
    /// Starts from `prior`.
    pub fn new(prior: PrefillModel) -> PrefillFit {
        let prior = [prior.base, prior.per_token, prior.per_attention];
        PrefillFit { fit: Robust::new(prior.map(Seconds::get)) }
    }

    /// A prefill of `new` tokens after `context` cached ones took the engine `took`. Senseless
    /// values are ignored, and so is a prefill of nothing.
    pub fn observe(&mut self, new: Tokens, context: Tokens, took: Seconds) {
        self.observe_batch(&PrefillBatch::of(new, context), took);
    }

    /// Prompts that were computed together took the engine `took`.
    pub fn observe_batch(&mut self, batch: &PrefillBatch, took: Seconds) {
        let new = batch.new;
        if new == Tokens::ZERO || (new + batch.context).get() > TOKENS_MAX {
            return;
        }
        let (attended, took) = match batch.pairs < ATTENDED_MIN * new.as_f64() {
            // Taken as it is known.
            true => (0.0, took - self.model().per_attention * batch.pairs),
            false => (batch.pairs, took),
        };
        let features = [1.0, new.as_f64(), attended];
        self.fit.observe(class(new.get(), [512, 2048, 8192]), features, took.get());
        let [base, ..] = self.fit.coefficients();
        self.fit.keep_above(1, f64::max(base * TOKEN_SHARE_MIN, TOKEN_MIN));
    }

    /// Prompts took the engine between `least` and `most`; more is not known. It teaches something
    /// only if the model is outside.
    pub fn observe_between(&mut self, batch: &PrefillBatch, least: Seconds, most: Seconds) {
        let predicted = batch.predicted(&self.model());
        if predicted < least {
            self.observe_batch(batch, least);
        } else if predicted > most {
            self.observe_batch(batch, most);
        }
    }

    /// The model as learned so far.
    pub fn model(&self) -> PrefillModel {
        let [base, per_token, per_attention] = self.fit.coefficients().map(Seconds);
        PrefillModel { base, per_token, per_attention }
    }

    /// How many observations were taken in.
    pub fn observations(&self) -> u64 {
        self.fit.seen()
    }
}

impl Default for PrefillFit {
    fn default() -> PrefillFit {
        PrefillFit::new(PrefillModel::default())
    }
}

impl DecodeFit {
    /// Starts from `prior`.
    pub fn new(prior: DecodeModel) -> DecodeFit {
        let free_streams = prior.free_streams;
        let prior = [prior.base, prior.per_stream, prior.per_kv_token];
        DecodeFit { fit: Robust::new(prior.map(Seconds::get)), free_streams }
    }

    /// With `streams` running and `kv` tokens of KV between them, a stream's tokens came `itl`
    /// apart. Senseless values are ignored, and so is a step of no stream.
    pub fn observe(&mut self, streams: u32, kv: Tokens, itl: Seconds) {
        if streams == 0 || kv.get() > TOKENS_MAX {
            return;
        }
        let paid = streams.saturating_sub(self.free_streams);
        let features = [1.0, f64::from(paid), kv.as_f64()];
        self.fit.observe(class(u64::from(streams), [8, 32, 128]), features, itl.get());
    }

    /// The model as learned so far.
    pub fn model(&self) -> DecodeModel {
        let [base, per_stream, per_kv_token] = self.fit.coefficients().map(Seconds);
        DecodeModel { base, per_stream, free_streams: self.free_streams, per_kv_token }
    }

    /// How many observations were taken in.
    pub fn observations(&self) -> u64 {
        self.fit.seen()
    }
}

impl Default for DecodeFit {
    fn default() -> DecodeFit {
        DecodeFit::new(DecodeModel::default())
    }
}

impl TransferFit {
    /// Starts from `prior`.
    pub fn new(prior: TransferModel) -> TransferFit {
        let prior = [prior.base, prior.per_token];
        TransferFit { fit: Robust::new(prior.map(Seconds::get)) }
    }

    /// Handing over the KV of `tokens` took `took`. Senseless values are ignored.
    pub fn observe(&mut self, tokens: Tokens, took: Seconds) {
        if tokens == Tokens::ZERO || tokens.get() > TOKENS_MAX {
            return;
        }
        let features = [1.0, tokens.as_f64()];
        self.fit.observe(class(tokens.get(), [512, 2048, 8192]), features, took.get());
    }

    /// The model as learned so far.
    pub fn model(&self) -> TransferModel {
        let [base, per_token] = self.fit.coefficients().map(Seconds);
        TransferModel { base, per_token }
    }

    /// How many observations were taken in.
    pub fn observations(&self) -> u64 {
        self.fit.seen()
    }
}

impl Default for TransferFit {
    fn default() -> TransferFit {
        TransferFit::new(TransferModel::default())
    }
}

/// Which of [`CLASSES`](crate::cost::robust::CLASSES) a size falls into.
fn class(size: u64, bounds: [u64; 3]) -> usize {
    bounds.iter().filter(|bound| size >= **bound).count()
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
