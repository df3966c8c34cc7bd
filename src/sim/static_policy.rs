//! Fixed roles and immediate dispatch: every request is sent on arrival to the engine with the least
//! predicted load.
//!
//! `aggregated`: every engine serves colocated requests. `static:K`: K engines prefill, the others
//! decode. The decode engine is the one with the fewest streams at the end of the prefill.
//!
//! Predicted work is the unfinished prefill time plus, for each stream, the compute time of one token.
//! Any small weight of the streams gives the same figures within a point. Without a weight, engines
//! without prefills tie, and the first one receives all streams.

use tidegate_types::{Seconds, Tokens};

use crate::cluster::{Cluster, Router};
use crate::engine::Work;

/// Router of the policies with fixed roles.
pub(crate) struct StaticRouter {
    /// Engines with a lower index prefill; `None`: every engine runs both legs.
    prefills: Option<usize>,
    loads: Vec<PredictedLoad>,
}

/// Unfinished work of one engine.
#[derive(Clone, Copy, Debug, Default)]
struct PredictedLoad {
    /// Predicted prefill work in nanoseconds; an integer, so that it returns to exactly 0.
    prefill: u64,
    /// Streams, including those in transfer.
    streams: u64,
}

impl StaticRouter {
    pub(crate) fn new(prefills: Option<usize>, engines: usize) -> StaticRouter {
        StaticRouter { prefills, loads: vec![PredictedLoad::default(); engines] }
    }
}

impl Router for StaticRouter {
    fn arrived(&mut self, cluster: &mut Cluster<'_>, request: usize) {
        let takers = self.prefills.unwrap_or(self.loads.len());
        let predicted_work = |engine: &usize| {
            let load = &self.loads[*engine];
            load.prefill + load.streams * nanos(cluster.profile(*engine).t_seq)
        };
        let least = (0..takers).min_by_key(predicted_work);
        let engine = least.unwrap_or(0);
        let load = &mut self.loads[engine];
        load.prefill += predicted(cluster, request, engine);
        if self.prefills.is_none() {
            load.streams += 1;
        }
        let work = if self.prefills.is_some() { Work::PrefillOnly } else { Work::Colocated };
        cluster.admit(request, engine, work);
    }

    fn prefilled(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.loads[engine].prefill -= predicted(cluster, request, engine);
        let decodes = self.prefills.unwrap_or(0)..self.loads.len();
        let to = decodes.min_by_key(|to| self.loads[*to].streams).unwrap_or(engine);
        self.loads[to].streams += 1;
        cluster.hand_off(request, engine, to);
    }

    fn began(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        if self.prefills.is_none() {
            self.loads[engine].prefill -= predicted(cluster, request, engine);
        }
    }

    fn ended(&mut self, _cluster: &mut Cluster<'_>, _request: usize, engine: usize) {
        self.loads[engine].streams -= 1;
    }
}

/// Returns a prompt's prefill work on an engine, in nanoseconds.
pub(crate) fn predicted(cluster: &Cluster<'_>, request: usize, engine: usize) -> u64 {
    let prompt = cluster.trace().arrivals[request].prompt;
    nanos(cluster.profile(engine).prefill_model().predict(prompt, Tokens::ZERO))
}

fn nanos(span: Seconds) -> u64 {
    (span.get() * 1e9) as u64
}
