//! What a policy has sent to each engine and is unfinished.

use std::collections::BTreeMap;
use tidegate_types::{Seconds, Tokens};

use crate::cluster::Cluster;

/// One engine's load.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Predicted prefill work in nanoseconds: integers return to zero exactly.
    prefill_nanos: u64,
    /// Uncached tokens of the prompts that are unfinished.
    pub(crate) prefill_tokens: Tokens,
    /// Prompts that are unfinished.
    pub(crate) prompts: u32,
    /// Streams, those on their way included.
    pub(crate) streams: u32,
    /// The streams' prompts.
    pub(crate) kv: Tokens,
}

/// The load of every engine.
#[derive(Debug)]
pub(crate) struct Loads {
    pub(crate) engines: Vec<Load>,
    /// By request: where it prefills, its work and its uncached tokens.
    prefilling: BTreeMap<usize, (usize, u64, Tokens)>,
    /// By request: where it decodes.
    decoding: BTreeMap<usize, usize>,
}

impl Load {
    /// Predicted prefill work.
    pub(crate) fn backlog(&self) -> Seconds {
        Seconds(self.prefill_nanos as f64 / 1e9)
    }
}

impl Loads {
    pub(crate) fn new(engines: usize) -> Loads {
        Loads {
            engines: vec![Load::default(); engines],
            prefilling: BTreeMap::new(),
            decoding: BTreeMap::new(),
        }
    }

    /// `request`'s prompt goes to `engine`; what the engine has cached is no work.
    pub(crate) fn prefill(&mut self, cluster: &Cluster<'_>, request: usize, engine: usize) {
        let prompt = cluster.trace().arrivals[request].prompt;
        let cached = cluster.cached(request, engine);
        let work = cluster.profile(engine).prefill_model().predict(prompt, cached);
        let (nanos, uncached) = ((work.get() * 1e9) as u64, prompt - cached);
        let load = &mut self.engines[engine];
        load.prefill_nanos += nanos;
        load.prefill_tokens += uncached;
        load.prompts += 1;
        self.prefilling.insert(request, (engine, nanos, uncached));
    }

    /// `request`'s prompt is computed.
    pub(crate) fn prefilled(&mut self, request: usize) {
        if let Some((engine, nanos, uncached)) = self.prefilling.remove(&request) {
            let load = &mut self.engines[engine];
            load.prefill_nanos -= nanos;
            load.prefill_tokens = load.prefill_tokens - uncached;
            load.prompts -= 1;
        }
    }

    /// `request`'s stream goes to `engine`, from another one if it was elsewhere.
    pub(crate) fn stream(&mut self, cluster: &Cluster<'_>, request: usize, engine: usize) {
        self.ended(cluster, request);
        let load = &mut self.engines[engine];
        load.streams += 1;
        load.kv += cluster.trace().arrivals[request].prompt;
        self.decoding.insert(request, engine);
    }

    /// `request`'s stream ended.
    pub(crate) fn ended(&mut self, cluster: &Cluster<'_>, request: usize) {
        if let Some(engine) = self.decoding.remove(&request) {
            let load = &mut self.engines[engine];
            load.streams -= 1;
            load.kv = load.kv - cluster.trace().arrivals[request].prompt;
        }
    }

    /// The streams of an engine, oldest request first.
    pub(crate) fn streams_of(&self, engine: usize) -> Vec<usize> {
        let here = self.decoding.iter().filter(|(_, on)| **on == engine);
        here.map(|(request, _)| *request).collect()
    }
}
