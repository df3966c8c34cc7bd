//! `xllm`: xLLM-service, after Arrow. A decode engine becomes a prefill engine as soon as it has no
//! request. A prefill engine becomes a decode engine when no decode engine meets the TPOT target
//! and the prefill pool has spare time. Prompts spill to decode engines with spare time.

use tidegate_types::{Seconds, Slo};

use crate::rivals::dispatch::{Fleet, Rival, Route};
use crate::rivals::least;

/// Policy whose roles follow instantaneous load.
pub(crate) struct Xllm {
    slo: Slo,
    /// By engine: whether it prefills.
    prefills: Vec<bool>,
    flips: u64,
}

impl Xllm {
    pub(crate) fn new(slo: Slo, engines: usize) -> Xllm {
        let prefills = (0..engines).map(|engine| engine < engines / 2).collect();
        Xllm { slo, prefills, flips: 0 }
    }

    fn of_side(&self, prefill: bool) -> impl Iterator<Item = usize> + Clone + '_ {
        (0..self.prefills.len()).filter(move |engine| self.prefills[*engine] == prefill)
    }

    fn count(&self, prefill: bool) -> f64 {
        self.of_side(prefill).count() as f64
    }

    fn fewest_streams(&self, fleet: Fleet<'_, '_>) -> usize {
        least(self.of_side(false), |engine| fleet.streams(engine)).unwrap_or(0)
    }

    fn flip(&mut self, engine: usize) {
        self.prefills[engine] = !self.prefills[engine];
        self.flips += 1;
    }
}

impl Rival for Xllm {
    fn place(&mut self, fleet: Fleet<'_, '_>, request: usize) -> Route {
        let wait = |engine| fleet.predicted_prefill(request, engine);
        let engine = least(self.of_side(true), |engine| wait(engine).get()).unwrap_or(0);
        let spill = self.fewest_streams(fleet);
        let d = self.count(false);
        let relaxed = fleet.predicted_tpot(request, spill) < self.slo.tpot * ((d - 1.0) / d);
        if wait(engine) > self.slo.ttft && relaxed {
            return Route::Whole(spill);
        }
        Route::Prefill(engine)
    }

    /// Converts a prefill engine if no decode engine meets the target.
    fn decode_engine(&mut self, fleet: Fleet<'_, '_>, request: usize, _from: usize) -> usize {
        let tpot = |engine: usize| fleet.predicted_tpot(request, engine);
        let within = self.of_side(false).any(|engine| tpot(engine) <= self.slo.tpot);
        let (p, d) = (self.count(true), self.count(false));
        let backlog = |engine: usize| fleet.loads.engines[engine].backlog();
        let waits: Vec<Seconds> = self.of_side(true).map(backlog).collect();
        let mean = waits.iter().copied().sum::<Seconds>() / p.max(1.0);
        let spare = mean < self.slo.ttft * ((p - 1.0) / p) || d < p;
        if !within && p > 1.0 && spare {
            if let Some(engine) = least(self.of_side(true), |engine| backlog(engine).get()) {
                self.flip(engine);
                return engine;
            }
        }
        self.fewest_streams(fleet)
    }

    fn ended(&mut self, fleet: Fleet<'_, '_>, _request: usize, engine: usize) {
        let idle = fleet.loads.engines[engine].streams == 0;
        if idle && !self.prefills[engine] && self.count(false) > 1.0 {
            self.flip(engine);
        }
    }

    fn flips(&self) -> u64 {
        self.flips
    }
}
