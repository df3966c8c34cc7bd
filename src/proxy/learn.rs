//! What requests tell the control loop: a bounded channel that is never waited for. An observation
//! that finds it full is dropped; fits do not need every one.

use tidegate_cost::ByteFeatures;
use tidegate_terms::{BackendId, Seconds, Tokens};

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

/// One thing seen.
#[derive(Clone, Copy, Debug)]
pub enum Observation {
    /// A prefill ran.
    Prefill {
        /// Where.
        backend: BackendId,
        /// Prompt tokens it had to compute.
        uncached: Tokens,
        /// Prompt tokens it had.
        cached: Tokens,
        /// How long the engine worked on it.
        took: Seconds,
        /// What ran there when it was placed.
        beside: Beside,
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
