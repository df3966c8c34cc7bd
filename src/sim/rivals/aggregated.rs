//! Aggregated serving with prefix-cache-aware routing: `dynamo_kv`, `sticky` and `cache_aware`.
//! Every engine runs colocated requests.

use crate::rivals::dispatch::{Rival, RivalFleet, Route};
use crate::rivals::least;

/// Tokens per block in Dynamo's cost.
const DYNAMO_BLOCK: f64 = 64.0;
/// Number of waiting prompts above which llm-d's saturation detector reports an engine as
/// saturated.
const SATURATED_PROMPTS: u32 = 5;
/// KV usage, 0..1, above which the detector reports an engine as saturated.
const SATURATED_KV: f64 = 0.8;
/// SGLang's router: `--cache-threshold`, share of the prompt that must match.
const CACHE_THRESHOLD: f64 = 0.3;
/// `--balance-abs-threshold`, requests.
const BALANCE_ABS: u32 = 64;
/// `--balance-rel-threshold`.
const BALANCE_REL: f64 = 1.5;

/// Rule that selects the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoutingRule {
    /// Dynamo's KV router: least (prefill blocks less cached ones + decode blocks).
    DynamoKv,
    /// llm-d's default: the engine with the longest cached prefix until it is saturated.
    Sticky,
    /// SGLang's router: longest match above a threshold while loads are balanced.
    CacheAware,
}

pub(crate) struct Aggregated(pub(crate) RoutingRule);

impl Rival for Aggregated {
    fn place(&mut self, fleet: RivalFleet<'_, '_>, request: usize) -> Route {
        let engine = match self.0 {
            RoutingRule::DynamoKv => all(fleet, |engine| dynamo_cost(fleet, request, engine)),
            RoutingRule::Sticky => sticky(fleet, request),
            RoutingRule::CacheAware => cache_aware(fleet, request),
        };
        Route::Colocated(engine.unwrap_or(0))
    }

    fn decode_engine(&mut self, _fleet: RivalFleet<'_, '_>, _request: usize, from: usize) -> usize {
        from
    }
}

fn all(fleet: RivalFleet<'_, '_>, cost: impl Fn(usize) -> f64) -> Option<usize> {
    least(0..fleet.engines(), cost)
}

fn dynamo_cost(fleet: RivalFleet<'_, '_>, request: usize, engine: usize) -> f64 {
    let load = &fleet.loads.engines[engine];
    let prompt = fleet.cluster.trace().arrivals[request].prompt.as_f64();
    let cached = fleet.cluster.cached(request, engine).as_f64();
    let prefill = (load.prefill_tokens.as_f64() + prompt - cached).max(0.0);
    (prefill + fleet.kv(engine).as_f64()) / DYNAMO_BLOCK
}

fn sticky(fleet: RivalFleet<'_, '_>, request: usize) -> Option<usize> {
    let RivalFleet { cluster, loads } = fleet;
    let saturated = |engine: usize| {
        let used = cluster.engine(engine).kv_used().as_f64();
        loads.engines[engine].prompts > SATURATED_PROMPTS
            || used > SATURATED_KV * cluster.profile(engine).kv_capacity.as_f64()
    };
    let cached = |engine: usize| cluster.cached(request, engine).as_f64();
    let holders =
        (0..fleet.engines()).filter(|engine| cached(*engine) > 0.0 && !saturated(*engine));
    least(holders, |engine| -cached(engine)).or_else(|| all(fleet, |engine| work(fleet, engine)))
}

/// Returns prefill seconds plus each stream's share of a step.
fn work(fleet: RivalFleet<'_, '_>, engine: usize) -> f64 {
    let load = &fleet.loads.engines[engine];
    (load.backlog() + fleet.cluster.profile(engine).t_seq * f64::from(load.streams)).get()
}

fn cache_aware(fleet: RivalFleet<'_, '_>, request: usize) -> Option<usize> {
    let RivalFleet { cluster, loads } = fleet;
    let requests = |engine: usize| loads.engines[engine].streams;
    let engines = 0..fleet.engines();
    let most = engines.clone().map(requests).max().unwrap_or(0);
    let fewest = engines.clone().map(requests).min().unwrap_or(0);
    let unbalanced =
        most - fewest > BALANCE_ABS && f64::from(most) > BALANCE_REL * f64::from(fewest);
    if unbalanced {
        return all(fleet, |engine| f64::from(requests(engine)));
    }
    let prompt = cluster.trace().arrivals[request].prompt.as_f64();
    let best = least(engines, |engine| -cluster.cached(request, engine).as_f64())?;
    if cluster.cached(request, best).as_f64() > CACHE_THRESHOLD * prompt {
        return Some(best);
    }
    // Selects the smallest tree; ties select the least loaded engine.
    all(fleet, |engine| cluster.cached_blocks(engine) as f64 + f64::from(requests(engine)) / 1e6)
}
