//! Unfinished work that a policy has sent to each engine.

use std::collections::BTreeMap;
use tidegate_types::{Seconds, Tokens};

use crate::cluster::Cluster;
use crate::engine::Work;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EngineLoad {
    /// Predicted prefill work in nanoseconds; an integer, so that it returns to exactly 0.
    prefill_nanos: u64,
    /// Uncached tokens of unfinished prompts.
    pub(crate) prefill_tokens: Tokens,
    /// Number of unfinished prompts.
    pub(crate) prompts: u32,
    /// Streams, including those in transfer.
    pub(crate) streams: u32,
    /// Prompt tokens of the streams that have emitted no token here yet.
    arriving: Tokens,
}

#[derive(Debug)]
pub(crate) struct EngineLoads {
    pub(crate) engines: Vec<EngineLoad>,
    /// By request: prefill engine, work in nanoseconds and uncached tokens.
    prefilling: BTreeMap<usize, (usize, u64, Tokens)>,
    /// By request: decode engine, and whether its KV still counts as arriving.
    decoding: BTreeMap<usize, (usize, bool)>,
}

impl EngineLoad {
    /// Returns the predicted prefill work.
    pub(crate) fn backlog(&self) -> Seconds {
        Seconds(self.prefill_nanos as f64 / 1e9)
    }
}

/// Returns the predicted prefill work of `request` on an engine, and its uncached tokens.
pub(crate) fn own_prefill(
    cluster: &Cluster<'_>,
    request: usize,
    engine: usize,
) -> (Seconds, Tokens) {
    let prompt = cluster.trace().arrivals[request].prompt;
    let cached = cluster.cached(request, engine);
    let work = cluster.profile(engine).prefill_model().predict(prompt - cached, cached);
    (work, prompt - cached)
}

impl EngineLoads {
    pub(crate) fn new(engines: usize) -> EngineLoads {
        EngineLoads {
            engines: vec![EngineLoad::default(); engines],
            prefilling: BTreeMap::new(),
            decoding: BTreeMap::new(),
        }
    }

    /// Sends both legs of `request` to `engine`.
    pub(crate) fn send_colocated(
        &mut self,
        cluster: &mut Cluster<'_>,
        request: usize,
        engine: usize,
    ) {
        self.charge_prefill(cluster, request, engine);
        self.charge_stream(cluster, request, engine);
        cluster.admit(request, engine, Work::Colocated);
    }

    /// Sends the prefill leg of `request` to `engine`.
    pub(crate) fn send_prefill(
        &mut self,
        cluster: &mut Cluster<'_>,
        request: usize,
        engine: usize,
    ) {
        self.charge_prefill(cluster, request, engine);
        cluster.admit(request, engine, Work::PrefillOnly);
    }

    /// Hands off `request`, prefilled on `from`, to `to` for its decode leg.
    pub(crate) fn hand_off(
        &mut self,
        cluster: &mut Cluster<'_>,
        request: usize,
        from: usize,
        to: usize,
    ) {
        self.charge_stream(cluster, request, to);
        cluster.hand_off(request, from, to);
    }

    /// Migrates the stream of `request` from `from` to `to`.
    pub(crate) fn migrate(
        &mut self,
        cluster: &mut Cluster<'_>,
        request: usize,
        from: usize,
        to: usize,
    ) {
        self.charge_stream(cluster, request, to);
        cluster.migrate(request, from, to);
    }

    /// Removes `request`'s prompt after its prefill.
    pub(crate) fn settle_prefill(&mut self, request: usize) {
        if let Some((engine, nanos, uncached)) = self.prefilling.remove(&request) {
            let load = &mut self.engines[engine];
            load.prefill_nanos -= nanos;
            load.prefill_tokens = load.prefill_tokens - uncached;
            load.prompts -= 1;
        }
    }

    /// Removes `request`'s stream.
    pub(crate) fn settle_stream(&mut self, cluster: &Cluster<'_>, request: usize) {
        if let Some((engine, arriving)) = self.decoding.remove(&request) {
            let load = &mut self.engines[engine];
            load.streams -= 1;
            if arriving {
                load.arriving = load.arriving - cluster.trace().arrivals[request].prompt;
            }
        }
    }

    /// The stream of `request` runs on its engine, which now reports its KV.
    pub(crate) fn arrived(&mut self, cluster: &Cluster<'_>, request: usize) {
        if let Some((engine, arriving)) = self.decoding.get_mut(&request)
            && std::mem::take(arriving)
        {
            let load = &mut self.engines[*engine];
            load.arriving = load.arriving - cluster.trace().arrivals[request].prompt;
        }
    }

    /// Returns the KV tokens of an engine's streams, those in transfer included.
    pub(crate) fn kv(&self, cluster: &Cluster<'_>, engine: usize) -> Tokens {
        cluster.engine(engine).kv_decoding() + self.engines[engine].arriving
    }

    /// Returns the streams that run on an engine, oldest request first.
    pub(crate) fn streams_of(&self, engine: usize) -> Vec<usize> {
        let here = self.decoding.iter().filter(|(_, on)| **on == (engine, false));
        here.map(|(request, _)| *request).collect()
    }

    /// Adds `request`'s prompt to `engine`; cached tokens are not counted as work.
    fn charge_prefill(&mut self, cluster: &Cluster<'_>, request: usize, engine: usize) {
        let (work, uncached) = own_prefill(cluster, request, engine);
        let nanos = (work.get() * 1e9) as u64;
        let load = &mut self.engines[engine];
        load.prefill_nanos += nanos;
        load.prefill_tokens += uncached;
        load.prompts += 1;
        self.prefilling.insert(request, (engine, nanos, uncached));
    }

    /// Adds `request`'s stream to `engine`, and removes it from its previous engine.
    fn charge_stream(&mut self, cluster: &Cluster<'_>, request: usize, engine: usize) {
        self.settle_stream(cluster, request);
        let load = &mut self.engines[engine];
        load.streams += 1;
        load.arriving += cluster.trace().arrivals[request].prompt;
        self.decoding.insert(request, (engine, true));
    }
}
