//! `llumnix` and `llumnix:migrate`: Llumnix's adaptive prefill and decode. Only the first engine
//! (prefill) and the last (decode) have a fixed role. Decodes are packed onto the engine with the
//! highest TPOT below the dispatch threshold; prefills go to engines without decodes. With live
//! migration, one engine above the ceiling is relieved (`binpacking_mitigation`) and one below the
//! floor is emptied (`binpacking_consolidation`) in each round.

use tidegate_types::{Seconds, Tokens};

use crate::cluster::Cluster;
use crate::rivals::dispatch::{Rival, RivalFleet, Route};
use crate::rivals::least;
use crate::rivals::loads::EngineLoads;

/// `--tpot-slo-dispatch-threshold`: share of the TPOT target up to which an engine takes decodes.
const DISPATCH: f64 = 0.85;
/// `--tpot-migrate-out-ceil-threshold`: share from which an engine is relieved.
const CEILING: f64 = 0.95;
/// `--tpot-migrate-out-floor-threshold`: share below which an engine is emptied.
const FLOOR: f64 = 0.6;
/// `--reschedule-interval-ms`.
const MIGRATE_EVERY: Seconds = Seconds(0.1);

/// Policy without engine roles.
pub(crate) struct Llumnix {
    tpot: Seconds,
    migrates: bool,
    /// Count of engines that started or stopped decoding.
    flips: u64,
}

impl Llumnix {
    pub(crate) fn new(tpot: Seconds, migrates: bool) -> Llumnix {
        Llumnix { tpot, migrates, flips: 0 }
    }

    /// Returns whether the engine decodes and takes one more request within the dispatch threshold.
    fn takes(&self, fleet: RivalFleet<'_, '_>, request: usize, engine: usize) -> bool {
        decodes(fleet, engine)
            && fleet.has_place(request, engine)
            && fleet.predicted_tpot(request, engine) <= self.tpot * DISPATCH
    }

    /// Bin packing: the reserved decode engine, or the engine with the highest predicted TPOT within
    /// the threshold.
    fn packed(
        &self,
        fleet: RivalFleet<'_, '_>,
        request: usize,
        but: Option<usize>,
    ) -> Option<usize> {
        let open = |engine: &usize| Some(*engine) != but && self.takes(fleet, request, *engine);
        let reserved = Some(fleet.engines() - 1).filter(open);
        let tpot = |engine| fleet.predicted_tpot(request, engine).get();
        reserved.or_else(|| least((1..fleet.engines()).filter(open), |engine| -tpot(engine)))
    }

    /// Returns the engine without decodes that would start them soonest, except the reserved
    /// prefill engine.
    fn convertible(&self, fleet: RivalFleet<'_, '_>) -> Option<usize> {
        let idle = (1..fleet.engines()).filter(|engine| !decodes(fleet, *engine));
        least(idle, |engine| fleet.loads.engines[engine].backlog().get())
    }

    /// Moves streams from the engine with the longest step to others until its step is below the
    /// ceiling.
    fn mitigate(&mut self, cluster: &mut Cluster<'_>, loads: &mut EngineLoads) {
        let fleet = RivalFleet { cluster, loads };
        let Some(from) = least(1..fleet.engines(), |engine| -step(fleet, engine).get()) else {
            return;
        };
        for request in smallest_first(fleet, from) {
            let fleet = RivalFleet { cluster, loads };
            if step(fleet, from) < self.tpot * CEILING {
                return;
            }
            let to = self.packed(fleet, request, Some(from)).or_else(|| {
                let to = self.convertible(fleet)?;
                self.flips += 1;
                Some(to)
            });
            let Some(to) = to else { return };
            loads.migrate(cluster, request, from, to);
        }
    }

    /// Empties the engine with the shortest step below the floor, as far as the others take its
    /// streams.
    fn consolidate(&mut self, cluster: &mut Cluster<'_>, loads: &mut EngineLoads) {
        let fleet = RivalFleet { cluster, loads };
        let low =
            |engine: &usize| decodes(fleet, *engine) && step(fleet, *engine) < self.tpot * FLOOR;
        let sources = (1..fleet.engines() - 1).filter(low);
        let Some(from) = least(sources, |engine| step(fleet, engine).get()) else { return };
        for request in smallest_first(fleet, from) {
            let fleet = RivalFleet { cluster, loads };
            let Some(to) = self.packed(fleet, request, Some(from)) else { return };
            loads.migrate(cluster, request, from, to);
        }
        self.flips += u64::from(loads.engines[from].streams == 0);
    }
}

/// Returns whether the engine decodes. The last engine is reserved for decode, the first for
/// prefill.
fn decodes(fleet: RivalFleet<'_, '_>, engine: usize) -> bool {
    engine + 1 == fleet.engines() || (engine > 0 && fleet.loads.engines[engine].streams > 0)
}

/// Returns the predicted decode step of an engine.
fn step(fleet: RivalFleet<'_, '_>, engine: usize) -> Seconds {
    let streams = fleet.loads.engines[engine].streams;
    fleet.cluster.profile(engine).decode_model().step(streams, fleet.kv(engine))
}

/// Returns the running streams of an engine, the one with the shortest prompt first.
fn smallest_first(fleet: RivalFleet<'_, '_>, engine: usize) -> Vec<usize> {
    let prompt = |request: &usize| -> Tokens { fleet.cluster.trace().arrivals[*request].prompt };
    let mut streams = fleet.loads.streams_of(engine);
    streams.sort_by_key(prompt);
    streams
}

impl Rival for Llumnix {
    fn every(&self) -> Option<Seconds> {
        self.migrates.then_some(MIGRATE_EVERY)
    }

    fn place(&mut self, fleet: RivalFleet<'_, '_>, request: usize) -> Route {
        let ttft = |engine| fleet.predicted_prefill(request, engine).get();
        let free = (0..fleet.engines()).filter(|engine| !decodes(fleet, *engine));
        Route::Prefill(least(free, ttft).unwrap_or(0))
    }

    fn decode_engine(&mut self, fleet: RivalFleet<'_, '_>, request: usize, _from: usize) -> usize {
        if let Some(engine) = self.packed(fleet, request, None) {
            return engine;
        }
        if let Some(engine) = self.convertible(fleet) {
            self.flips += 1;
            return engine;
        }
        let tpot = |engine| fleet.predicted_tpot(request, engine).get();
        least(1..fleet.engines(), tpot).unwrap_or(0)
    }

    fn ended(&mut self, fleet: RivalFleet<'_, '_>, _request: usize, engine: usize) {
        self.flips += u64::from(fleet.loads.engines[engine].streams == 0);
    }

    fn plan(&mut self, cluster: &mut Cluster<'_>, loads: &mut EngineLoads) {
        self.mitigate(cluster, loads);
        self.consolidate(cluster, loads);
    }

    fn flips(&self) -> u64 {
        self.flips
    }
}
