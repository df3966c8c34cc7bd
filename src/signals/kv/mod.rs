//! KV cache events: what an engine stored in its prefix cache and what it threw away.
//!
//! - [`event`]: one message decoded, as vLLM and SGLang write it now and wrote it before
//! - [`sequence`]: is this the next message, one seen before, or are some missing?
//! - [`mirror`]: the engine's cache as its events tell it, under tidegate's own block hashes
//! - [`follow`]: the three together, for one engine

pub mod event;
pub mod follow;
pub mod mirror;
pub mod sequence;

#[cfg(test)]
pub(crate) mod encode;
