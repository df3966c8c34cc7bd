//! `xllm`: xLLM-service, after Arrow. A decode engine becomes a prefill engine as soon as it has no
//! request. A prefill engine becomes a decode engine when no decode engine meets the TPOT target
//! and the prefill pool has spare time. Prompts spill to decode engines with spare time.

use tidegate_types::{Seconds, Slo};

use crate::cluster::{Cluster, Router};
use crate::engine::Work;
use crate::rivals::loads::Loads;
use crate::rivals::{least, predicted_prefill, predicted_tpot};

/// Policy whose roles follow instantaneous load.
pub(crate) struct Xllm {
    slo: Slo,
    loads: Loads,
    /// By engine: whether it prefills.
    prefills: Vec<bool>,
    flips: u64,
}

impl Xllm {
    pub(crate) fn new(slo: Slo, engines: usize) -> Xllm {
        let prefills = (0..engines).map(|engine| engine < engines / 2).collect();
        Xllm { slo, loads: Loads::new(engines), prefills, flips: 0 }
    }

    fn of_side(&self, prefill: bool) -> impl Iterator<Item = usize> + Clone + '_ {
        (0..self.prefills.len()).filter(move |engine| self.prefills[*engine] == prefill)
    }

    fn count(&self, prefill: bool) -> f64 {
        self.of_side(prefill).count() as f64
    }

    fn fewest_streams(&self) -> usize {
        let streams = |engine: usize| f64::from(self.loads.engines[engine].streams);
        least(self.of_side(false), streams).unwrap_or(0)
    }

    fn flip(&mut self, engine: usize) {
        self.prefills[engine] = !self.prefills[engine];
        self.flips += 1;
    }

    /// Returns the decode engine for a stream. A prefill engine is converted if no decode engine
    /// meets the target.
    fn decode_engine(&mut self, cluster: &Cluster<'_>, request: usize) -> usize {
        let tpot = |engine: usize| predicted_tpot(cluster, &self.loads, request, engine);
        let within = self.of_side(false).any(|engine| tpot(engine) <= self.slo.tpot);
        let (p, d) = (self.count(true), self.count(false));
        let waits: Vec<Seconds> =
            self.of_side(true).map(|engine| self.loads.engines[engine].backlog()).collect();
        let mean = waits.iter().copied().sum::<Seconds>() / p.max(1.0);
        let spare = mean < self.slo.ttft * ((p - 1.0) / p) || d < p;
        if !within && p > 1.0 && spare {
            let backlog = |engine: usize| self.loads.engines[engine].backlog().get();
            if let Some(engine) = least(self.of_side(true), backlog) {
                self.flip(engine);
                return engine;
            }
        }
        self.fewest_streams()
    }
}

impl Router for Xllm {
    fn arrived(&mut self, cluster: &mut Cluster<'_>, request: usize) {
        let wait = |engine| predicted_prefill(cluster, &self.loads, request, engine);
        let engine = least(self.of_side(true), |engine| wait(engine).get()).unwrap_or(0);
        let spill = self.fewest_streams();
        let d = self.count(false);
        let relaxed =
            predicted_tpot(cluster, &self.loads, request, spill) < self.slo.tpot * ((d - 1.0) / d);
        if wait(engine) > self.slo.ttft && relaxed {
            self.loads.prefill(cluster, request, spill);
            self.loads.stream(cluster, request, spill);
            return cluster.admit(request, spill, Work::Whole);
        }
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

    fn ended(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.loads.ended(cluster, request);
        let idle = self.loads.engines[engine].streams == 0;
        if idle && !self.prefills[engine] && self.count(false) > 1.0 {
            self.flip(engine);
        }
    }

    fn flips(&self) -> u64 {
        self.flips
    }
}
