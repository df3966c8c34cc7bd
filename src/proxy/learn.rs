//! What requests tell the control loop: a bounded channel that is never waited for. An observation
//! that finds it full is dropped; fits do not need every one.

use tidegate_scheduler::cost::ByteFeatures;
use tidegate_types::{BackendId, Moment, Tokens};

/// Room for a second's worth at a thousand requests a second.
pub const OBSERVATIONS_MAX: usize = 4096;

/// The streams that a prefill ran beside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// How many.
    pub streams: u32,
    /// Their KV tokens.
    pub kv: Tokens,
    /// No prefill was before it: it came in the middle of a step of theirs.
    pub at_once: bool,
}

/// A prompt that an engine has read.
#[derive(Clone, Copy, Debug)]
pub struct ReadPrompt {
    /// Where.
    pub backend: BackendId,
    /// Its tokens.
    pub prompt: Tokens,
    /// Those that the prefix index said the engine holds.
    pub held: Tokens,
    /// Those that the engine says it had, where that is known.
    pub told: Option<Tokens>,
    /// When it was sent.
    pub sent: Moment,
    /// When its first token, or the prefill's answer, came; of an answer that is not streamed, when
    /// the answer came.
    pub ended: Moment,
    /// What ran there when it was placed.
    pub beside: Beside,
}

/// One thing seen.
#[derive(Clone, Copy, Debug)]
pub enum Observation {
    /// A prefill ran.
    Prefill(ReadPrompt),
    /// A request ran whole and its answer was not streamed: the prefill and so many output tokens
    /// took that time together.
    Whole {
        /// The request.
        read: ReadPrompt,
        /// Its output tokens.
        output: Tokens,
    },
    /// An engine reported how much of a prompt it had cached.
    Hit {
        /// Where.
        backend: BackendId,
        /// Tokens that the prefix index said it holds.
        held: Tokens,
        /// Tokens that it had.
        cached: Tokens,
    },
    /// An engine's own counter of cached prompt tokens since its start.
    Counted {
        /// Which engine.
        backend: BackendId,
        /// The counter.
        hits: f64,
    },
    /// A request ended well.
    Finished {
        /// Its limit.
        max_tokens: Option<Tokens>,
        /// Its prompt as tidegate counted or estimated it.
        counted: Tokens,
        /// What it emitted.
        output: Tokens,
        /// The engine's count of the prompt.
        prompt: Option<Tokens>,
        /// What the prompt was estimated from, if it was.
        features: Option<ByteFeatures>,
    },
    /// A leg's backend came back or went away: the table should follow at once.
    HealthChanged,
}
