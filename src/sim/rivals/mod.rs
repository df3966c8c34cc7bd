//! Rivals: policies of other systems, as described by their sources and papers and as deployed by
//! their users; docs/comparison.md has the quotations and sources. Every rival reads the exact loads
//! and prefix caches of the engines at the time of its decision, which is more information than it
//! has in production.
//!
//! - [`aggregated`]: `dynamo_kv`, `sticky`, `cache_aware`: every engine runs both legs
//! - [`conditional`]: fixed split; the decode engine prefills short or cached prompts itself
//! - [`llumnix`], [`xllm`], [`tokenscale`]: engines move between the pools
//! - [`dispatch`], [`loads`]: bookkeeping that they share

mod aggregated;
mod conditional;
mod dispatch;
mod llumnix;
mod loads;
mod tokenscale;
mod xllm;

pub(crate) use aggregated::{Aggregated, RoutingRule};
pub(crate) use conditional::Conditional;
pub(crate) use dispatch::{Dispatch, Rival};
pub(crate) use llumnix::Llumnix;
pub(crate) use tokenscale::TokenScale;
pub(crate) use xllm::Xllm;

/// Returns the engine with the least `cost`; ties select the first.
fn least(engines: impl Iterator<Item = usize>, cost: impl Fn(usize) -> f64) -> Option<usize> {
    engines.min_by(|a, b| cost(*a).total_cmp(&cost(*b)))
}

#[cfg(test)]
mod tests;
