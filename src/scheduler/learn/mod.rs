//! Online cost regressions: prefill and decode costs per backend, hand-off costs per compatibility
//! group, output lengths over all backends, and the real share of predicted prefix-cache hits.
//!
//! - [`Sample`], [`PrefillSample`], [`HandOffSample`]: observations
//! - [`Priors`]: a backend's costs before the first observation
//! - [`CostRegressions`]: the regressions; [`Estimates`], [`HitSource`]: parts of their results
//!
//! Pure: the caller passes observations and times, and publishes the results at [`PUBLISH_EVERY`].

mod cache;
mod decode_runs;
mod hand_offs;
mod hypothesis_models;
mod peers;
mod regressions;
mod sample;
mod steps;

pub use cache::HitSource;
pub use regressions::{CostRegressions, Estimates, Priors};
pub use sample::{HandOffSample, PrefillSample, Sample};

use tidegate_types::Seconds;

/// Interval at which the learned costs are published to placement and planner.
pub const PUBLISH_EVERY: Seconds = Seconds(1.0);
