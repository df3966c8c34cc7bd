//! Online regressions of the cost models. Each wraps [`RobustRegression`] with the features of its
//! model.

use crate::cost::model::attention_pairs;
use crate::cost::robust_regression::RobustRegression;
use crate::cost::{DecodeModel, PrefillModel, TransferModel};
use tidegate_types::{Seconds, Tokens};

/// Largest accepted token count, above any context window; larger ones come from a faulty engine.
const TOKENS_MAX: u64 = 100_000_000;

/// Least mean number of attended tokens per new token with which attention is fitted. Below it,
/// attention is a few hundredths of a prefill on a transformer of any size, less than the fixed cost,
/// timer noise and interference from other prompts. A coefficient fitted to such noise predicted
/// several times the true duration of long prompts.
const ATTENDED_MIN: f64 = 512.0;

/// Lower bound of the cost of a token, as a share of the fixed cost of a step. Source: a step whose
/// compute takes as long as reading the weights has 185 tokens for Llama-70B
/// (docs/spec/engine-model.md), 1,700 for a mixture of experts that reads eighteen times its active
/// weights, and fewer on CPUs. Without this bound, a series of steps of equal duration led to 44 ms
/// per step and 0 per token.
const TOKEN_SHARE_MIN: f64 = 1.0 / 2048.0;

/// Absolute lower bound of the cost of a token, in seconds: ten million tokens per second, more than
/// any engine computes.
const TOKEN_MIN: f64 = 1e-7;

/// Shortest hand-off, in seconds: two HTTP messages over loopback take longer.
const HAND_OFF_MIN: Seconds = Seconds(50e-6);

/// Prompts that an engine computed in one step: their tokens add up, and the fixed cost counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PrefillBatch {
    new: Tokens,
    context: Tokens,
    pairs: f64,
}

/// Online regression of a [`PrefillModel`].
#[derive(Clone, Debug)]
pub struct PrefillRegression {
    regression: RobustRegression<3>,
}

/// Online regression of a [`DecodeModel`].
#[derive(Clone, Debug)]
pub struct DecodeRegression {
    regression: RobustRegression<3>,
    /// From the prior, not fitted: the model is piecewise linear in it.
    free_streams: u32,
}

/// Online regression of a [`TransferModel`].
#[derive(Clone, Debug)]
pub struct TransferRegression {
    regression: RobustRegression<2>,
}

impl PrefillBatch {
    /// Returns a batch of one prompt of `new` tokens after `context` cached ones.
    pub fn of(new: Tokens, context: Tokens) -> PrefillBatch {
        PrefillBatch { new, context, pairs: attention_pairs(new, context) }
    }

    /// Adds the prompts of another batch.
    pub fn add(&mut self, other: PrefillBatch) {
        self.new += other.new;
        self.context += other.context;
        self.pairs += other.pairs;
    }

    /// Returns the number of uncached tokens.
    pub fn tokens(&self) -> Tokens {
        self.new
    }

    /// Returns the duration predicted by `model`; 0 for a batch without uncached tokens.
    pub fn predicted(&self, model: &PrefillModel) -> Seconds {
        match self.new {
            Tokens::ZERO => Seconds::ZERO,
            new => model.base + model.per_token * new.as_f64() + model.per_attention * self.pairs,
        }
    }
}

impl PrefillRegression {
    /// Returns a regression that starts from `prior`.
    pub fn new(prior: PrefillModel) -> PrefillRegression {
        let prior = [prior.base, prior.per_token, prior.per_attention];
        PrefillRegression { regression: RobustRegression::new(prior.map(Seconds::get)) }
    }

    /// Adds an observation: a prefill of `new` tokens after `context` cached ones took the engine
    /// `took`. Non-finite and non-positive durations, excessive token counts and empty prefills are
    /// ignored.
    pub fn observe(&mut self, new: Tokens, context: Tokens, took: Seconds) {
        self.observe_batch(&PrefillBatch::of(new, context), took);
    }

    /// Adds an observation: the batch took the engine `took`.
    pub fn observe_batch(&mut self, batch: &PrefillBatch, took: Seconds) {
        let new = batch.new;
        if new == Tokens::ZERO || (new + batch.context).get() > TOKENS_MAX {
            return;
        }
        let (attended, took) = match batch.pairs < ATTENDED_MIN * new.as_f64() {
            // Attention is not fitted here; its predicted time is subtracted.
            true => (0.0, took - self.model().per_attention * batch.pairs),
            false => (batch.pairs, took),
        };
        let features = [1.0, new.as_f64(), attended];
        self.regression.observe(class(new.get(), [512, 2048, 8192]), features, took.get());
        let [base, ..] = self.regression.coefficients();
        self.regression.keep_above(1, f64::max(base * TOKEN_SHARE_MIN, TOKEN_MIN));
    }

    /// Adds an interval observation: the batch took the engine between `least` and `most`. It
    /// changes the regression only if the prediction lies outside the interval.
    pub fn observe_between(&mut self, batch: &PrefillBatch, least: Seconds, most: Seconds) {
        let predicted = batch.predicted(&self.model());
        if predicted < least {
            self.observe_batch(batch, least);
        } else if predicted > most {
            self.observe_batch(batch, most);
        }
    }

    /// Returns the current model.
    pub fn model(&self) -> PrefillModel {
        let [base, per_token, per_attention] = self.regression.coefficients().map(Seconds);
        PrefillModel { base, per_token, per_attention }
    }

    /// Returns the number of accepted observations.
    pub fn observations(&self) -> u64 {
        self.regression.seen()
    }
}

impl Default for PrefillRegression {
    fn default() -> PrefillRegression {
        PrefillRegression::new(PrefillModel::default())
    }
}

impl DecodeRegression {
    /// Returns a regression that starts from `prior`.
    pub fn new(prior: DecodeModel) -> DecodeRegression {
        let free_streams = prior.free_streams;
        let prior = [prior.base, prior.per_stream, prior.per_kv_token];
        DecodeRegression {
            regression: RobustRegression::new(prior.map(Seconds::get)),
            free_streams,
        }
    }

    /// Adds an observation: with `streams` streams and `kv` KV tokens in total, the inter-token
    /// latency was `itl`. Non-finite and non-positive durations, excessive token counts and steps
    /// without streams are ignored.
    pub fn observe(&mut self, streams: u32, kv: Tokens, itl: Seconds) {
        if streams == 0 || kv.get() > TOKENS_MAX {
            return;
        }
        let paid = streams.saturating_sub(self.free_streams);
        let features = [1.0, f64::from(paid), kv.as_f64()];
        self.regression.observe(class(u64::from(streams), [8, 32, 128]), features, itl.get());
    }

    /// Returns the current model.
    pub fn model(&self) -> DecodeModel {
        let [base, per_stream, per_kv_token] = self.regression.coefficients().map(Seconds);
        DecodeModel { base, per_stream, free_streams: self.free_streams, per_kv_token }
    }

    /// Returns the number of accepted observations.
    pub fn observations(&self) -> u64 {
        self.regression.seen()
    }
}

impl Default for DecodeRegression {
    fn default() -> DecodeRegression {
        DecodeRegression::new(DecodeModel::default())
    }
}

impl TransferRegression {
    /// Returns a regression that starts from `prior`.
    pub fn new(prior: TransferModel) -> TransferRegression {
        let prior = [prior.base, prior.per_token];
        TransferRegression { regression: RobustRegression::new(prior.map(Seconds::get)) }
    }

    /// Adds an observation: the hand-off of the KV of `tokens` tokens took `took`. Non-finite and
    /// non-positive durations and implausible token counts are ignored.
    pub fn observe(&mut self, tokens: Tokens, took: Seconds) {
        if tokens == Tokens::ZERO || tokens.get() > TOKENS_MAX {
            return;
        }
        let features = [1.0, tokens.as_f64()];
        self.regression.observe(class(tokens.get(), [512, 2048, 8192]), features, took.get());
    }

    /// Adds an interval observation: the hand-off took between `least` and `most`. It changes the
    /// regression only if the prediction lies outside the interval. An upper bound below
    /// [`HAND_OFF_MIN`] counts as that: the bounds are differences of measured and predicted times
    /// and may be negative.
    pub fn observe_between(&mut self, tokens: Tokens, least: Seconds, most: Seconds) {
        let predicted = self.model().predict(tokens);
        let most = most.max(HAND_OFF_MIN);
        if predicted < least {
            self.observe(tokens, least);
        } else if predicted > most {
            self.observe(tokens, most);
        }
    }

    /// Returns the current model.
    pub fn model(&self) -> TransferModel {
        let [base, per_token] = self.regression.coefficients().map(Seconds);
        TransferModel { base, per_token }
    }

    /// Returns the number of accepted observations.
    pub fn observations(&self) -> u64 {
        self.regression.seen()
    }
}

impl Default for TransferRegression {
    fn default() -> TransferRegression {
        TransferRegression::new(TransferModel::default())
    }
}

/// Returns the class, of [`CLASSES`](crate::cost::robust_regression::CLASSES), of a size.
fn class(size: u64, bounds: [u64; 3]) -> usize {
    bounds.iter().filter(|bound| size >= **bound).count()
}

#[cfg(test)]
#[path = "regressions_tests.rs"]
mod tests;
