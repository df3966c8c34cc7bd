//! Policies of other systems, each as its sources and papers describe it and as its users run it:
//! the words and their sources are in docs/comparison.md. Every rival sees the engines' exact loads
//! and prefix caches at the moment of its decision, which is more than it sees in production.
//!
//! - [`aggregated`]: `dynamo_kv`, `sticky`, `cache_aware`: every engine prefills and decodes
//! - [`conditional`]: fixed split, the decode engine prefills short or cached prompts itself
//! - [`llumnix`], [`xllm`], [`tokenscale`]: engines move between the two sides
//! - [`loads`]: what a policy has sent to each engine and is unfinished

mod aggregated;
mod conditional;
mod llumnix;
mod loads;
mod tokenscale;
mod xllm;

pub(crate) use aggregated::{Aggregated, Choice};
pub(crate) use conditional::Conditional;
pub(crate) use llumnix::Llumnix;
pub(crate) use tokenscale::TokenScale;
pub(crate) use xllm::Xllm;

use tidegate_types::Seconds;

use crate::cluster::Cluster;
use loads::Loads;

/// The mean TPOT of an engine's streams once `request` decodes there too. Streams that were sent and
/// have not begun count.
fn predicted_tpot(cluster: &Cluster<'_>, loads: &Loads, request: usize, engine: usize) -> Seconds {
    let load = &loads.engines[engine];
    let kv = load.kv + cluster.trace().arrivals[request].prompt;
    cluster.profile(engine).decode_model().step(load.streams + 1, kv)
}

/// The time until an engine would have computed `request`'s prompt: the prefill work before it, and
/// its own.
fn predicted_prefill(
    cluster: &Cluster<'_>,
    loads: &Loads,
    request: usize,
    engine: usize,
) -> Seconds {
    let prompt = cluster.trace().arrivals[request].prompt;
    let own =
        cluster.profile(engine).prefill_model().predict(prompt, cluster.cached(request, engine));
    loads.engines[engine].backlog() + own
}

/// The engine of `engines` with the least `cost`, the first of equals.
fn least(engines: impl Iterator<Item = usize>, cost: impl Fn(usize) -> f64) -> Option<usize> {
    engines.min_by(|a, b| cost(*a).total_cmp(&cost(*b)))
}
