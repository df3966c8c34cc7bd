//! Engine profiles: the constants of docs/spec/engine-model.md#constants. Profiles are added beside
//! the reference one,
//! which is never tuned.

use tidegate_scheduler::cost::{DecodeModel, PrefillModel};
use tidegate_types::{Seconds, Tokens};

/// One engine's physics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// Its name on the command line.
    pub name: &'static str,
    /// Fixed cost of a step.
    pub t_base: Seconds,
    /// Reading the weights once.
    pub t_weights: Seconds,
    /// Reading one token's KV.
    pub t_kv: Seconds,
    /// Computing one decode token.
    pub t_seq: Seconds,
    /// Computing one prefill token.
    pub t_tok: Seconds,
    /// Attention, per prefill token and context token.
    pub t_att: Seconds,
    /// A hand-off, whatever its size.
    pub t_handoff: Seconds,
    /// Moving one token's KV to another engine.
    pub t_xfer: Seconds,
    /// Bytes of one token's KV.
    pub kv_bytes: u64,
    /// Tokens of KV that fit.
    pub kv_capacity: Tokens,
    /// Most sequences that run at once.
    pub max_num_seqs: u32,
    /// Tokens of one step: `max_num_batched_tokens`.
    pub chunk: Tokens,
    /// A stream's KV counts as if its whole answer were there from the start, in memory and in the
    /// time of a step. It is not, but the table of docs/spec/engine-model.md#whole-answers seems to
    /// be made so
    /// (benches/README.md): for comparing with it.
    pub counts_whole_answers: bool,
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
    t_handoff: Seconds(3e-3),
    t_xfer: Seconds(3.3e-6),
    kv_bytes: 131_072,
    kv_capacity: Tokens(300_000),
    max_num_seqs: 256,
    chunk: Tokens(2048),
    counts_whole_answers: false,
};

/// The reference, ten times as fast, for tests that should not wait.
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
    /// Every profile.
    pub const ALL: [Profile; 4] = [LLAMA_70B, LLAMA_70B_A100, LLAMA_8B, FAST];

    /// The profile of that name.
    pub fn named(name: &str) -> Option<Profile> {
        Profile::ALL.into_iter().find(|profile| profile.name == name)
    }

    /// This engine with another step budget, at least one token.
    #[must_use]
    pub fn with_chunk(self, chunk: Tokens) -> Profile {
        Profile { chunk: chunk.max(Tokens(1)), ..self }
    }

    /// This engine, counting KV as the table of docs/spec/engine-model.md#whole-answers does.
    #[must_use]
    pub fn counting_whole_answers(self) -> Profile {
        Profile { counts_whole_answers: true, ..self }
    }

    /// This engine with every duration multiplied by `factor`.
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
            ..self
        }
    }

    /// What a prefill costs on it alone. The per-step cost of reading the weights hides behind a
    /// full chunk's compute, so a step adds its base; spread over the chunk's tokens.
    pub fn prefill_model(&self) -> PrefillModel {
        PrefillModel {
            base: self.t_base,
            per_token: self.t_tok + self.t_base / self.chunk.as_f64().max(1.0),
            per_attention: self.t_att,
        }
    }

    /// What a decode step costs on it.
    pub fn decode_model(&self) -> DecodeModel {
        DecodeModel {
            base: self.t_base + self.t_weights,
            per_stream: self.t_seq,
            free_streams: (self.t_weights / self.t_seq) as u32,
            per_kv_token: self.t_kv,
        }
    }

    /// How long a hand-off of `tokens` takes.
    pub fn transfer(&self, tokens: Tokens) -> Seconds {
        self.t_handoff + self.t_xfer * tokens.as_f64()
    }
}

impl Default for Profile {
    fn default() -> Profile {
        LLAMA_70B
    }
}
