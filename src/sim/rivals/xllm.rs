//! `xllm`: xLLM-service, after Arrow. All engines but one begin as prefill engines. A stream goes to
//! the first decode engine that meets the TPOT target (first fit), so that later ones fall idle. A
//! decode engine becomes a prefill engine as soon as it has no request. A prefill engine becomes a
//! decode engine when no decode engine meets the TPOT target and the prefill pool has spare time.
//! Prompts spill to decode engines with spare time.

use tidegate_types::{Seconds, Slo};

use crate::rivals::dispatch::{Rival, RivalFleet, Route};
use crate::rivals::least;

/// Policy whose roles follow instantaneous load.
pub(crate) struct Xllm {
    slo: Slo,
    prefills: Vec<usize>,
    /// In the order in which streams try them.
    decodes: Vec<usize>,
    flips: u64,
}

impl Xllm {
    pub(crate) fn new(slo: Slo, engines: usize) -> Xllm {
        Xllm { slo, prefills: (1..engines).collect(), decodes: vec![0], flips: 0 }
    }

    /// Returns the first decode engine with a place within the TPOT target.
    fn first_fit(&self, fleet: RivalFleet<'_, '_>, request: usize) -> Option<usize> {
        let within = |engine: &&usize| {
            fleet.has_place(request, **engine)
                && fleet.predicted_tpot(request, **engine) <= self.slo.tpot
        };
        self.decodes.iter().find(within).copied()
    }

    /// Returns the decode engine with the least predicted TPOT.
    fn fastest(&self, fleet: RivalFleet<'_, '_>, request: usize) -> usize {
        let tpot = |engine| fleet.predicted_tpot(request, engine).get();
        least(self.decodes.iter().copied(), tpot).unwrap_or(0)
    }

    /// Returns the prefill engine with the least backlog.
    fn soonest(&self, fleet: RivalFleet<'_, '_>) -> usize {
        least(self.prefills.iter().copied(), |engine| backlog(fleet, engine).get()).unwrap_or(0)
    }

    /// Whether the prefill pool can spare an engine.
    fn has_spare_prefill(&self, fleet: RivalFleet<'_, '_>) -> bool {
        let (p, d) = (self.prefills.len() as f64, self.decodes.len() as f64);
        let waits: Seconds = self.prefills.iter().map(|engine| backlog(fleet, *engine)).sum();
        p > 1.0 && (waits / p < self.slo.ttft * ((p - 1.0) / p) || d < p)
    }
}

fn backlog(fleet: RivalFleet<'_, '_>, engine: usize) -> Seconds {
    fleet.loads.engines[engine].backlog()
}

impl Rival for Xllm {
    fn place(&mut self, fleet: RivalFleet<'_, '_>, request: usize) -> Route {
        let (engine, spill) = (self.soonest(fleet), self.fastest(fleet, request));
        let d = self.decodes.len() as f64;
        let relaxed = fleet.predicted_tpot(request, spill) < self.slo.tpot * ((d - 1.0) / d);
        let behind = backlog(fleet, engine) > self.slo.ttft
            && backlog(fleet, spill) < backlog(fleet, engine);
        if behind && relaxed && self.first_fit(fleet, request) != Some(spill) {
            return Route::Prefill(spill);
        }
        Route::Prefill(engine)
    }

    /// Converts a prefill engine if no decode engine meets the target; this stream does not wait
    /// for it.
    fn decode_engine(&mut self, fleet: RivalFleet<'_, '_>, request: usize, _from: usize) -> usize {
        if let Some(engine) = self.first_fit(fleet, request) {
            return engine;
        }
        let to = self.fastest(fleet, request);
        if self.has_spare_prefill(fleet) {
            let engine = self.soonest(fleet);
            self.prefills.retain(|other| *other != engine);
            self.decodes.push(engine);
            self.flips += 1;
        }
        to
    }

    fn ended(&mut self, fleet: RivalFleet<'_, '_>, _request: usize, engine: usize) {
        let idle = fleet.loads.engines[engine].streams == 0;
        if idle && self.decodes.contains(&engine) && self.decodes.len() > 1 {
            self.decodes.retain(|other| *other != engine);
            self.prefills.push(engine);
            self.flips += 1;
        }
    }

    fn flips(&self) -> u64 {
        self.flips
    }
}
