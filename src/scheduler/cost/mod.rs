//! What work costs, learned while it runs, and who already has which prompt.
//!
//! - [`PrefillModel`], [`DecodeModel`], [`TransferModel`]: predicted time, by
//!   docs/spec/engine-model.md#step-time
//! - [`PrefillFit`], [`DecodeFit`], [`TransferFit`]: the same models fitted online, robustly
//! - [`PrefillBatch`]: prompts that an engine computes in one step
//! - [`HitShare`], [`HitEvidence`]: how much of a predicted prefix-cache hit is real
//! - [`OutputEstimate`]: how many tokens a request will emit
//! - [`ByteFeatures`], [`ByteEstimator`]: prompt tokens where no tokenizer is there
//! - [`chain_tokens`], [`chain_bytes`], [`chain_salt`]: a prompt's block hashes
//! - [`PrefixIndex`], [`Matches`]: which backend holds which blocks
//!
//! Pure: it reads no clock, does no I/O and draws no random number. It knows no role and no queue.

mod bytes;
mod chain;
mod fit;
mod hits;
mod matches;
mod model;
mod output;
mod prefix;
mod robust;

pub use bytes::{ByteEstimator, ByteFeatures};
pub use chain::{chain_bytes, chain_salt, chain_tokens};
pub use fit::{DecodeFit, PrefillBatch, PrefillFit, TransferFit};
pub use hits::{HitEvidence, HitShare};
pub use matches::Matches;
pub use model::{DecodeModel, PrefillModel, TransferModel};
pub use output::OutputEstimate;
pub use prefix::PrefixIndex;
