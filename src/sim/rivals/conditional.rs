//! `conditional:K`: Dynamo's conditional disaggregation. K engines prefill, the others decode. The
//! candidate decode engine prefills a request itself if few of its tokens are uncached or if the
//! prefill engines are busy.

use tidegate_types::Tokens;

use crate::cluster::{Cluster, Router};
use crate::engine::Work;
use crate::rivals::loads::Loads;
use crate::rivals::{least, predicted_prefill};

/// Uncached tokens below which a prompt may be prefilled on the decode engine.
const LOCAL_BELOW: Tokens = Tokens(2_048);
/// Uncached share of a short prompt, 0..1, above which it is handed off.
const UNCACHED_SHARE: f64 = 0.7;
/// Prompts per prefill engine above which the prefill pool is busy.
const BUSY_PROMPTS: u32 = 2;

/// A fixed split with local prefill.
pub(crate) struct Conditional {
    prefills: usize,
    loads: Loads,
}

impl Conditional {
    pub(crate) fn new(prefills: usize, engines: usize) -> Conditional {
        Conditional { prefills, loads: Loads::new(engines) }
    }

    fn prefills_locally(&self, cluster: &Cluster<'_>, request: usize, decode: usize) -> bool {
        let prompt = cluster.trace().arrivals[request].prompt;
        let uncached = prompt - cluster.cached(request, decode);
        let little = uncached < LOCAL_BELOW && uncached.as_f64() < UNCACHED_SHARE * prompt.as_f64();
        let busy = |engine: usize| self.loads.engines[engine].prompts >= BUSY_PROMPTS;
        little || (0..self.prefills).all(busy)
    }

    /// Returns the decode engine with the longest cached prefix; ties select the fewest streams.
    fn decode_engine(&self, cluster: &Cluster<'_>, request: usize) -> usize {
        let decodes = self.prefills..self.loads.engines.len();
        let streams = |engine: usize| f64::from(self.loads.engines[engine].streams);
        let cost = |engine: usize| {
            let cached = cluster.cached(request, engine).as_f64();
            streams(engine) - cached / LOCAL_BELOW.as_f64()
        };
        least(decodes, cost).unwrap_or(0)
    }
}

impl Router for Conditional {
    fn arrived(&mut self, cluster: &mut Cluster<'_>, request: usize) {
        let decode = self.decode_engine(cluster, request);
        if self.prefills_locally(cluster, request, decode) {
            self.loads.prefill(cluster, request, decode);
            self.loads.stream(cluster, request, decode);
            return cluster.admit(request, decode, Work::Whole);
        }
        let wait = |engine| predicted_prefill(cluster, &self.loads, request, engine).get();
        let engine = least(0..self.prefills, wait).unwrap_or(0);
        self.loads.prefill(cluster, request, engine);
        cluster.admit(request, engine, Work::PrefillOnly);
    }

    fn prefilled(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.loads.prefilled(request);
        let to = self.decode_engine(cluster, request);
        self.loads.stream(cluster, request, to);
        cluster.hand_over(request, engine, to);
    }

    fn began(&mut self, _cluster: &mut Cluster<'_>, request: usize, _engine: usize) {
        self.loads.prefilled(request);
    }

    fn ended(&mut self, cluster: &mut Cluster<'_>, request: usize, _engine: usize) {
        self.loads.ended(cluster, request);
    }
}
