//! Aggregated serving with prefix-cache-aware routing: `dynamo_kv`, `sticky` and `cache_aware`.
//! Every engine runs whole requests.

use crate::cluster::{Cluster, Router};
use crate::engine::Work;
use crate::rivals::least;
use crate::rivals::loads::Loads;

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
pub(crate) enum Choice {
    /// Dynamo's KV router: least (prefill blocks less cached ones + decode blocks).
    DynamoKv,
    /// llm-d's default: the engine with the longest cached prefix until it is saturated.
    Sticky,
    /// SGLang's router: longest match above a threshold while loads are balanced.
    CacheAware,
}

pub(crate) struct Aggregated {
    choice: Choice,
    loads: Loads,
}

impl Aggregated {
    pub(crate) fn new(choice: Choice, engines: usize) -> Aggregated {
        Aggregated { choice, loads: Loads::new(engines) }
    }

    fn choose(&self, cluster: &Cluster<'_>, request: usize) -> usize {
        let engine = match self.choice {
            Choice::DynamoKv => self.all(|engine| self.dynamo_cost(cluster, request, engine)),
            Choice::Sticky => self.sticky(cluster, request),
            Choice::CacheAware => self.cache_aware(cluster, request),
        };
        engine.unwrap_or(0)
    }

    fn all(&self, cost: impl Fn(usize) -> f64) -> Option<usize> {
        least(0..self.loads.engines.len(), cost)
    }

    fn dynamo_cost(&self, cluster: &Cluster<'_>, request: usize, engine: usize) -> f64 {
        let load = &self.loads.engines[engine];
        let prompt = cluster.trace().arrivals[request].prompt.as_f64();
        let cached = cluster.cached(request, engine).as_f64();
        let prefill = (load.prefill_tokens.as_f64() + prompt - cached).max(0.0);
        (prefill + load.kv.as_f64()) / DYNAMO_BLOCK
    }

    fn sticky(&self, cluster: &Cluster<'_>, request: usize) -> Option<usize> {
        let saturated = |engine: usize| {
            let used = cluster.engine(engine).kv_used().as_f64();
            self.loads.engines[engine].prompts > SATURATED_PROMPTS
                || used > SATURATED_KV * cluster.profile(engine).kv_capacity.as_f64()
        };
        let holders = (0..self.loads.engines.len())
            .filter(|engine| cluster.cached(request, *engine).get() > 0 && !saturated(*engine));
        least(holders, |engine| -cluster.cached(request, engine).as_f64())
            .or_else(|| self.all(|engine| self.work(cluster, engine)))
    }

    /// Returns prefill seconds plus each stream's share of a step.
    fn work(&self, cluster: &Cluster<'_>, engine: usize) -> f64 {
        let load = &self.loads.engines[engine];
        (load.backlog() + cluster.profile(engine).t_seq * f64::from(load.streams)).get()
    }

    fn cache_aware(&self, cluster: &Cluster<'_>, request: usize) -> Option<usize> {
        let requests = |engine: usize| self.loads.engines[engine].streams;
        let all = 0..self.loads.engines.len();
        let most = all.clone().map(requests).max().unwrap_or(0);
        let fewest = all.clone().map(requests).min().unwrap_or(0);
        let unbalanced =
            most - fewest > BALANCE_ABS && f64::from(most) > BALANCE_REL * f64::from(fewest);
        if unbalanced {
            return self.all(|engine| f64::from(requests(engine)));
        }
        let prompt = cluster.trace().arrivals[request].prompt.as_f64();
        let best = least(all, |engine| -cluster.cached(request, engine).as_f64())?;
        if cluster.cached(request, best).as_f64() > CACHE_THRESHOLD * prompt {
            return Some(best);
        }
        // Selects the smallest tree; ties select the least loaded engine.
        self.all(|engine| cluster.cached_blocks(engine) as f64 + f64::from(requests(engine)) / 1e6)
    }
}

impl Router for Aggregated {
    fn arrived(&mut self, cluster: &mut Cluster<'_>, request: usize) {
        let engine = self.choose(cluster, request);
        self.loads.prefill(cluster, request, engine);
        self.loads.stream(cluster, request, engine);
        cluster.admit(request, engine, Work::Whole);
    }

    fn prefilled(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        cluster.hand_over(request, engine, engine);
    }

    fn began(&mut self, _cluster: &mut Cluster<'_>, request: usize, _engine: usize) {
        self.loads.prefilled(request);
    }

    fn ended(&mut self, cluster: &mut Cluster<'_>, request: usize, _engine: usize) {
        self.loads.ended(cluster, request);
    }
}
