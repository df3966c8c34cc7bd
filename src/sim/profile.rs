//! Engine profiles: the constants of docs/spec/engine-model.md#constants. Other profiles are added
//! beside the reference profile, which is never tuned.

use tidegate_scheduler::cost::{DecodeModel, PrefillModel, TransferModel};
use tidegate_types::{Seconds, Tokens};

use crate::mocker;

/// Constants of one engine. Durations are in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// Name on the command line.
    pub name: &'static str,
    /// Fixed cost of a step.
    pub t_base: Seconds,
    /// Time to read the weights once per step.
    pub t_weights: Seconds,
    /// Time to read one token's KV.
    pub t_kv: Seconds,
    /// Compute time of one decode token.
    pub t_seq: Seconds,
    /// Compute time of one prefill token.
    pub t_tok: Seconds,
    /// Attention time per pair of prefill token and context token.
    pub t_att: Seconds,
    /// Fixed cost of a hand-off.
    pub t_handoff: Seconds,
    /// Transfer time of one token's KV to another engine.
    pub t_xfer: Seconds,
    /// KV size of one token, in bytes.
    pub kv_bytes: u64,
    /// KV memory, in tokens.
    pub kv_capacity: Tokens,
    /// Maximum number of running sequences.
    pub max_num_seqs: u32,
    /// Token budget of a step: `max_num_batched_tokens`.
    pub chunk: Tokens,
    /// Counts a stream's KV as if its whole answer were present from the start, in memory and in
    /// step time. The table of docs/spec/engine-model.md#whole-answers appears to be computed this
    /// way (benches/README.md); this flag is for comparison with it.
    pub counts_whole_answers: bool,
    /// Form of a step's duration.
    pub step: StepCost,
}

/// Form of a step's duration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepCost {
    /// docs/spec/engine-model.md#step-time.
    Roofline,
    /// docs/spec/engine-model.md#dynamo-mocker. The profile's constants are then the cost models
    /// that policies assume: the prefill cost of one prompt, and a line through the decode curve.
    Mocker {
        /// Factor on every step.
        factor: f64,
    },
}

/// Llama-3.1-70B in 16 bit on four H100, from first principles
/// (docs/spec/engine-model.md#constants).
const LLAMA_70B: Profile = Profile {
    name: "llama70b-h100x4",
    t_base: Seconds(2e-3),
    t_weights: Seconds(13.1e-3),
    t_kv: Seconds(30.6e-9),
    t_seq: Seconds(72e-6),
    t_tok: Seconds(71e-6),
    t_att: Seconds(1.33e-9),
    t_handoff: Seconds(3e-3),
    t_xfer: Seconds(8e-6),
    kv_bytes: 327_680,
    kv_capacity: Tokens(430_000),
    max_num_seqs: 256,
    chunk: Tokens(2048),
    counts_whole_answers: false,
    step: StepCost::Roofline,
};

/// Llama-3.1-70B in 16 bit on four A100 (80 GB: 312 TFLOPS, 2,039 GB/s), by the same formulas.
const LLAMA_70B_A100: Profile = Profile {
    name: "llama70b-a100x4",
    t_weights: Seconds(21.6e-3),
    t_kv: Seconds(50.2e-9),
    t_seq: Seconds(228e-6),
    t_tok: Seconds(225e-6),
    t_att: Seconds(4.2e-9),
    ..LLAMA_70B
};

/// Llama-3.1-8B in 16 bit on one H100, by the same formulas: 16 GB of weights, 2 × 8e9 operations a
/// token, 131,072 bytes of KV a token, 40 GB left for it.
const LLAMA_8B: Profile = Profile {
    name: "llama8b-h100",
    t_base: Seconds(1.5e-3),
    t_weights: Seconds(6.0e-3),
    t_kv: Seconds(48.9e-9),
    t_seq: Seconds(33e-6),
    t_tok: Seconds(32e-6),
    t_att: Seconds(1.06e-9),
    t_xfer: Seconds(3.3e-6),
    kv_bytes: 131_072,
    kv_capacity: Tokens(300_000),
    ..LLAMA_70B
};

/// Qwen3-32B in 16 bit on one H20 (96 GB: 148 TFLOPS, 4.0 TB/s), fitted to Llumnix's two static
/// curves: docs/spec/engine-model.md#qwen3-32b-h20.
const QWEN_32B_H20: Profile = Profile {
    name: "qwen3-32b-h20",
    t_base: Seconds(2e-3),
    t_weights: Seconds(20.5e-3),
    t_kv: Seconds(81.9e-9),
    t_seq: Seconds(800e-6),
    t_tok: Seconds(650e-6),
    t_att: Seconds(20.8e-9),
    t_handoff: Seconds(3e-3),
    t_xfer: Seconds(6.6e-6),
    kv_bytes: 262_144,
    kv_capacity: Tokens(60_000),
    ..LLAMA_70B
};

/// NVIDIA Dynamo's mocker: docs/spec/engine-model.md#dynamo-mocker.
const DYNAMO_MOCKER: Profile = Profile {
    name: "dynamo-mocker",
    t_base: mocker::PREFILL_BASE,
    t_weights: mocker::DECODE_BASE,
    t_kv: mocker::DECODE_PER_KV_TOKEN,
    t_seq: Seconds(1e-9),
    t_tok: mocker::PREFILL_PER_TOKEN,
    t_att: mocker::PREFILL_PER_ATTENTION,
    t_handoff: Seconds::ZERO,
    t_xfer: Seconds::ZERO,
    kv_capacity: mocker::KV_CAPACITY,
    chunk: Tokens(8192),
    step: StepCost::Mocker { factor: 1.0 },
    ..LLAMA_70B
};

/// The reference with durations divided by ten, for quick tests.
const FAST: Profile = Profile {
    name: "fast",
    t_base: Seconds(0.2e-3),
    t_weights: Seconds(1.3e-3),
    t_kv: Seconds(3.06e-9),
    t_seq: Seconds(7.2e-6),
    t_tok: Seconds(7.1e-6),
    t_att: Seconds(0.133e-9),
    t_handoff: Seconds(0.3e-3),
    t_xfer: Seconds(0.8e-6),
    ..LLAMA_70B
};

impl Profile {
    /// All profiles.
    pub const ALL: [Profile; 6] =
        [LLAMA_70B, LLAMA_70B_A100, LLAMA_8B, FAST, QWEN_32B_H20, DYNAMO_MOCKER];

    /// Returns the profile with this name.
    pub fn named(name: &str) -> Option<Profile> {
        Profile::ALL.into_iter().find(|profile| profile.name == name)
    }

    /// Returns this profile with another token budget per step, at least one.
    #[must_use]
    pub fn with_chunk(self, chunk: Tokens) -> Profile {
        Profile { chunk: chunk.max(Tokens(1)), ..self }
    }

    /// Returns this profile with KV counted as in the table of
    /// docs/spec/engine-model.md#whole-answers.
    #[must_use]
    pub fn counting_whole_answers(self) -> Profile {
        Profile { counts_whole_answers: true, ..self }
    }

    /// Returns this profile with every duration multiplied by `factor`.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Profile {
        Profile {
            t_base: self.t_base * factor,
            t_weights: self.t_weights * factor,
            t_kv: self.t_kv * factor,
            t_seq: self.t_seq * factor,
            t_tok: self.t_tok * factor,
            t_att: self.t_att * factor,
            t_handoff: self.t_handoff * factor,
            t_xfer: self.t_xfer * factor,
            step: match self.step {
                StepCost::Roofline => StepCost::Roofline,
                StepCost::Mocker { factor: own } => StepCost::Mocker { factor: own * factor },
            },
            ..self
        }
    }

    /// Returns the prefill cost model of a prompt alone on the engine. By the roofline, a full
    /// chunk's compute hides the reading of the weights, so a step adds only its base cost, spread
    /// over the chunk's tokens.
    pub fn prefill_model(&self) -> PrefillModel {
        let share = match self.step {
            StepCost::Roofline => self.t_base / self.chunk.as_f64().max(1.0),
            StepCost::Mocker { .. } => Seconds::ZERO,
        };
        PrefillModel { base: self.t_base, per_token: self.t_tok + share, per_attention: self.t_att }
    }

    /// Returns the cost model of a hand-off.
    pub fn transfer_model(&self) -> TransferModel {
        TransferModel { base: self.t_handoff, per_token: self.t_xfer }
    }

    /// Returns the cost model of a decode step.
    pub fn decode_model(&self) -> DecodeModel {
        let (base, free_streams) = match self.step {
            StepCost::Roofline => {
                (self.t_base + self.t_weights, (self.t_weights / self.t_seq) as u32)
            }
            StepCost::Mocker { .. } => (self.t_weights, 0),
        };
        DecodeModel { base, per_stream: self.t_seq, free_streams, per_kv_token: self.t_kv }
    }

    /// Returns the duration of a hand-off of `tokens`.
    pub fn transfer(&self, tokens: Tokens) -> Seconds {
        self.t_handoff + self.t_xfer * tokens.as_f64()
    }
}

impl Default for Profile {
    fn default() -> Profile {
        LLAMA_70B
    }
}
