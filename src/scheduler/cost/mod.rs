//! Cost models fitted online, and the prefix index.
//!
//! - [`PrefillModel`], [`DecodeModel`], [`TransferModel`]: predicted time, by
//!   docs/spec/engine-model.md#step-time
//! - [`PrefillRegression`], [`DecodeRegression`], [`TransferRegression`]: robust online regressions of
//!   these models
//! - [`PrefillBatch`]: prompts that an engine computes in one step
//! - [`HitShare`], [`HitEvidence`]: the share of a predicted prefix cache hit that is real
//! - [`OutputEstimate`]: expected output tokens of a request
//! - [`ByteFeatures`], [`ByteEstimator`]: estimated prompt tokens without a tokenizer
//! - [`chain_tokens`], [`chain_bytes`], [`chain_salt`]: chained hashes of a prompt's blocks
//! - [`PrefixIndex`], [`Matches`]: the backends that hold a prompt's blocks
//!
//! Pure: no clock, no I/O, no random numbers. Independent of roles and queues.

mod bytes;
mod chain;
mod hits;
mod matches;
mod model;
mod output;
mod prefix;
mod regressions;
mod robust_regression;

pub use bytes::{ByteEstimator, ByteFeatures};
pub use chain::{chain_bytes, chain_salt, chain_tokens};
pub use hits::{HitEvidence, HitShare};
pub use matches::Matches;
pub use model::{DecodeModel, PrefillModel, TransferModel};
pub use output::OutputEstimate;
pub use prefix::PrefixIndex;
pub use regressions::{DecodeRegression, PrefillBatch, PrefillRegression, TransferRegression};
