//! Policies of other systems, as described by their sources and papers and as deployed by their
//! users; docs/comparison.md has the quotations and sources. Every rival reads the engines' exact
//! loads and prefix caches at the time of its decision, which is more information than it has in
//! production.
//!
//! - [`aggregated`]: `dynamo_kv`, `sticky`, `cache_aware`: every engine runs both legs
//! - [`conditional`]: fixed split; the decode engine prefills short or cached prompts itself
//! - [`llumnix`], [`xllm`], [`tokenscale`]: engines move between the pools
//! - [`loads`]: unfinished work that a policy has sent to each engine

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

/// Returns the mean TPOT of an engine's streams with `request` added. Streams in transfer count.
fn predicted_tpot(cluster: &Cluster<'_>, loads: &Loads, request: usize, engine: usize) -> Seconds {
    let load = &loads.engines[engine];
    let kv = load.kv + cluster.trace().arrivals[request].prompt;
    cluster.profile(engine).decode_model().step(load.streams + 1, kv)
}

/// Returns the time until an engine would have computed `request`'s prompt: queued prefill work
/// plus its own.
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

/// Returns the engine with the least `cost`; ties select the first.
fn least(engines: impl Iterator<Item = usize>, cost: impl Fn(usize) -> f64) -> Option<usize> {
    engines.min_by(|a, b| cost(*a).total_cmp(&cost(*b)))
}
