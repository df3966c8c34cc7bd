//! Predicted duration of a prefill, a decode step and a hand-off. The coefficients come from a
//! profile, the settings or a regression.

use serde::{Deserialize, Serialize};
use tidegate_types::{Seconds, Tokens};

/// `seconds(n new tokens after x cached) = base + per_token·n + per_attention·(n·x + n²/2)`.
///
/// The sum of the steps of docs/spec/engine-model.md#step-time over the chunks of one prompt:
/// `per_token` contains each token's share of the fixed cost of a step. Prompts of one step share its
/// `base`: each adds [`added_time`](PrefillModel::added_time), and together they take
/// [`batch`](PrefillModel::batch).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefillModel {
    /// Fixed cost of a prefill.
    pub base: Seconds,
    /// Cost of computing one token.
    pub per_token: Seconds,
    /// Cost of attention between one new token and one token before it.
    pub per_attention: Seconds,
}

/// `step(n streams, K tokens of KV) = base + per_stream·max(0, n − free_streams) + per_kv_token·K`,
/// by docs/spec/engine-model.md#step-time: `base` is `t_base + t_weights`, and up to `free_streams
/// = t_weights / t_seq` streams compute while the weights are read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeModel {
    /// Fixed cost of a step: launches, and reading the weights once.
    pub base: Seconds,
    /// Cost of computing one stream's token.
    pub per_stream: Seconds,
    /// Number of streams whose compute overlaps reading the weights and adds no time.
    #[serde(default)]
    pub free_streams: u32,
    /// Cost of reading one token's KV.
    pub per_kv_token: Seconds,
}

/// `hand_off(n tokens) = base + per_token·n`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferModel {
    /// Fixed cost of a hand-off.
    pub base: Seconds,
    /// Cost of moving one token's KV.
    pub per_token: Seconds,
}

impl Default for PrefillModel {
    /// Prior for an unknown engine: a mid-size model on one modern accelerator, between the 70B profile
    /// of docs/spec/engine-model.md#constants on four H100 and an 8B model on one. A few observations
    /// replace it.
    fn default() -> PrefillModel {
        PrefillModel {
            base: Seconds(0.010),
            per_token: Seconds(50e-6),
            per_attention: Seconds(0.8e-9),
        }
    }
}

impl PrefillModel {
    /// Returns the mean of the coefficients; zero for no model.
    pub fn mean(models: impl ExactSizeIterator<Item = PrefillModel>) -> PrefillModel {
        let n = models.len().max(1) as f64;
        let zero = Seconds::ZERO;
        let mut mean = PrefillModel { base: zero, per_token: zero, per_attention: zero };
        for model in models {
            mean.base += model.base / n;
            mean.per_token += model.per_token / n;
            mean.per_attention += model.per_attention / n;
        }
        mean
    }

    /// Returns the duration of a prefill of `new` prompt tokens after `context` cached ones; 0 if
    /// `new` is 0.
    ///
    /// ```
    /// use tidegate_scheduler::cost::PrefillModel;
    /// use tidegate_types::{Seconds, Tokens};
    ///
    /// let model = PrefillModel {
    ///     base: Seconds(0.010),
    ///     per_token: Seconds(50e-6),
    ///     per_attention: Seconds::ZERO,
    /// };
    /// // 10 ms and 1,000 tokens of 50 µs; a prefix cache hit of 600 tokens saves 30 ms.
    /// let (all, rest) = (Tokens(1000), Tokens(400));
    /// assert!((model.predict(all, Tokens(0)).get() - 0.060).abs() < 1e-9);
    /// assert!((model.predict(rest, Tokens(600)).get() - 0.030).abs() < 1e-9);
    /// ```
    pub fn predict(&self, new: Tokens, context: Tokens) -> Seconds {
        if new == Tokens::ZERO {
            return Seconds::ZERO;
        }
        self.base + self.added_time(new, context)
    }

    /// Returns the time that such a prompt adds to a step with other prompts: the duration without
    /// the base, which is paid once per step.
    pub fn added_time(&self, new: Tokens, context: Tokens) -> Seconds {
        let pairs = attention_pairs(new, context);
        self.per_token * new.as_f64() + self.per_attention * pairs
    }

    /// Returns the duration of prompts computed together whose [`added_time`](PrefillModel::added_time)
    /// times sum to `joined`; 0 if `joined` is 0.
    pub fn batch(&self, joined: Seconds) -> Seconds {
        if joined > Seconds::ZERO { self.base + joined } else { Seconds::ZERO }
    }
}

impl Default for DecodeModel {
    /// See [`PrefillModel::default`].
    fn default() -> DecodeModel {
        DecodeModel {
            base: Seconds(0.012),
            per_stream: Seconds(50e-6),
            free_streams: 0,
            per_kv_token: Seconds(25e-9),
        }
    }
}

impl DecodeModel {
    /// Returns the duration of a step that gives each of `streams` one token, with `kv` KV tokens
    /// in total.
    pub fn step(&self, streams: u32, kv: Tokens) -> Seconds {
        let paid = f64::from(streams.saturating_sub(self.free_streams));
        self.base + self.per_stream * paid + self.per_kv_token * kv.as_f64()
    }

    /// Returns the time that `streams` add to a step with a prefill chunk. The chunk's compute already
    /// overlaps reading the weights, so that every stream adds time.
    pub fn beside_prefill(&self, streams: u32, kv: Tokens) -> Seconds {
        self.per_stream * f64::from(streams) + self.per_kv_token * kv.as_f64()
    }

    /// Returns the largest number of streams of `mean_kv` tokens each whose step stays within
    /// `tpot`. It may be fractional; 0 if an empty step exceeds `tpot`; at most `u32::MAX`.
    pub fn streams_within(&self, tpot: Seconds, mean_kv: Tokens) -> f64 {
        let left = (tpot - self.base).get();
        let reading = (self.per_kv_token * mean_kv.as_f64()).get();
        let each = self.per_stream.get() + reading;
        let free = f64::from(self.free_streams);
        let most = match left / reading.max(1e-12) {
            all_free if all_free <= free => all_free,
            _ => (left + self.per_stream.get() * free) / each.max(1e-12),
        };
        // False for NaN.
        if left > 0.0 { most.min(f64::from(u32::MAX)) } else { 0.0 }
    }
}

impl Default for TransferModel {
    /// 3 ms a hand-off, and 320 KiB a token at 40 GB/s (docs/spec/engine-model.md#first-token).
    fn default() -> TransferModel {
        TransferModel { base: Seconds(0.003), per_token: Seconds(8e-6) }
    }
}

impl TransferModel {
    /// Returns the duration of moving the KV of `tokens` to another engine.
    pub fn predict(&self, tokens: Tokens) -> Seconds {
        self.base + self.per_token * tokens.as_f64()
    }
}

/// Number of pairs of a new token and a token it attends to: `n·x + n²/2`.
pub(super) fn attention_pairs(new: Tokens, context: Tokens) -> f64 {
    let n = new.as_f64();
    n * context.as_f64() + n * n / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_prefix_costs_attention_but_no_tokens() {
        let model = PrefillModel {
            base: Seconds(1.0),
            per_token: Seconds(0.1),
            per_attention: Seconds(0.01),
        };
        assert_eq!(model.predict(Tokens(10), Tokens(0)), Seconds(1.0 + 1.0 + 0.5));
        assert_eq!(model.predict(Tokens(10), Tokens(20)), Seconds(1.0 + 1.0 + 2.5));
        assert_eq!(model.predict(Tokens(0), Tokens(20)), Seconds::ZERO);
    }

    #[test]
    fn prompts_of_one_step_pay_its_base_once() {
        let model = PrefillModel::default();
        let (prompt, none) = (Tokens(30), Tokens::ZERO);
        let both = model.batch(model.added_time(prompt, none) + model.added_time(prompt, none));
        let twice = model.predict(prompt, none) * 2.0;
        assert!((twice - both - model.base).get().abs() < 1e-12, "{both:?}");
        assert_eq!(model.batch(model.added_time(prompt, none)), model.predict(prompt, none));
        assert_eq!(model.batch(Seconds::ZERO), Seconds::ZERO);
    }

    #[test]
    fn the_most_streams_within_a_target_just_meet_it() {
        let model = DecodeModel::default();
        let (tpot, kv) = (Seconds(0.030), Tokens(1500));
        let most = model.streams_within(tpot, kv);
        let step = |n: f64| model.step(n as u32, Tokens((n * 1500.0) as u64));
        assert!(step(most.floor()) <= tpot && step(most.ceil()) > tpot);
        assert_eq!(model.streams_within(Seconds(0.012), kv), 0.0);
        // 182 of the 200 streams that fit are free apart from their KV; at the shorter target all
        // are.
        let roofline = DecodeModel { free_streams: 182, ..model };
        for tpot in [Seconds(0.018), Seconds(0.0205)] {
            let most = roofline.streams_within(tpot, kv);
            let step = |n: f64| roofline.step(n as u32, Tokens((n * 1500.0) as u64));
            assert!(step(most.floor()) <= tpot && step(most.ceil()) > tpot, "{most}");
        }
        assert_eq!(model.streams_within(Seconds(f64::NAN), kv), 0.0);
    }
}
