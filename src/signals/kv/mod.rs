//! KV cache events: blocks that an engine added to its prefix cache or removed.
//!
//! - [`event`]: decoder of one message, in the current and earlier encodings of vLLM and SGLang
//! - [`sequence`]: message numbers: next, repeated, or after a gap
//! - [`mirror`]: the engine's cache in tidegate's own block hashes
//! - [`follow`]: the three together, for one engine

pub mod event;
pub mod follow;
pub mod mirror;
pub mod sequence;

#[cfg(test)]
pub(crate) mod encode;
