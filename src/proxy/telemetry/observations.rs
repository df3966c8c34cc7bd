//! Observations from requests to the control loop, over a bounded channel. An observation that
//! finds the channel full is dropped: the regressions do not need every one.

use tidegate_scheduler::cost::ByteFeatures;
use tidegate_types::{BackendId, Moment, Tokens};

/// Capacity of the channel: one second of observations at 1,000 requests a second.
pub const OBSERVATIONS_MAX: usize = 4096;

/// The streams that decoded beside a prefill.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// Number of streams.
    pub streams: u32,
    /// Their KV tokens.
    pub kv: Tokens,
    /// Whether no prefill was ahead of it, so that it arrived in the middle of a decode step.
    pub at_once: bool,
}

/// A prefilled prompt.
#[derive(Clone, Copy, Debug)]
pub struct ReadPrompt {
    pub backend: BackendId,
    /// Its tokens.
    pub prompt: Tokens,
    /// Tokens that the prefix index predicted to be cached.
    pub held: Tokens,
    /// Tokens that the engine reported as cached, if it does.
    pub told: Option<Tokens>,
    /// When it was sent.
    pub sent: Moment,
    /// When its first token, or the prefill leg's answer, arrived; for a non-streamed answer, when
    /// the answer arrived.
    pub ended: Moment,
    /// The work on the backend when it was placed.
    pub beside: Beside,
}

/// One observation.
#[derive(Clone, Copy, Debug)]
pub enum Observation {
    /// A prefill.
    Prefill(ReadPrompt),
    /// A colocated request with a non-streamed answer: prefill and decode took the observed time
    /// together.
    Whole {
        /// The prompt.
        read: ReadPrompt,
        /// Its output tokens.
        output: Tokens,
    },
    /// An engine's report of cached prompt tokens.
    Hit {
        backend: BackendId,
        /// Tokens that the prefix index predicted to be cached.
        held: Tokens,
        /// Tokens that were cached.
        cached: Tokens,
    },
    /// An engine's counter of cached prompt tokens since its start.
    Counted {
        backend: BackendId,
        /// The counter's value.
        hits: f64,
    },
    /// A successful request.
    Finished {
        /// Its `max_tokens`.
        max_tokens: Option<Tokens>,
        /// Its prompt as tidegate counted or estimated it.
        counted: Tokens,
        /// Its output tokens.
        output: Tokens,
        /// The engine's count of its prompt tokens.
        prompt: Option<Tokens>,
        /// What the prompt was estimated from, if it was estimated.
        features: Option<ByteFeatures>,
    },
    /// The health of a leg's backend changed: the table is updated at once.
    HealthChanged,
}
