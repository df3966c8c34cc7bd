//! `llumnix` and `llumnix:migrate`: Llumnix's adaptive prefill and decode. Only the first engine
//! (prefill) and the last (decode) have a fixed role. Decodes are packed onto the engine with the
//! highest TPOT that still meets the target; prefills go to engines without decodes. With live
//! migration, engines over the target are relieved and the engine with the fewest streams is
//! emptied.

use tidegate_types::Seconds;

use crate::cluster::Cluster;
use crate::rivals::dispatch::{Fleet, Rival, Route};
use crate::rivals::least;
use crate::rivals::loads::Loads;

/// Interval between migration rounds.
const MIGRATE_EVERY: Seconds = Seconds(0.5);
/// Maximum number of streams moved per round.
const MIGRATE_MAX: usize = 8;

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

    /// Bin packing: the decoding engine with the highest predicted TPOT within the target.
    fn packed(&self, fleet: Fleet<'_, '_>, request: usize, but: Option<usize>) -> Option<usize> {
        let tpot = |engine| fleet.predicted_tpot(request, engine);
        let kv = fleet.cluster.trace().arrivals[request].prompt;
        let fits = |engine: &usize| {
            decodes(fleet, *engine)
                && Some(*engine) != but
                && tpot(*engine) <= self.tpot
                && fleet.loads.engines[*engine].kv + kv
                    <= fleet.cluster.profile(*engine).kv_capacity
        };
        least((1..fleet.engines()).filter(fits), |engine| -tpot(engine).get())
    }

    /// Relieves engines over the TPOT target, then empties the engine with the fewest streams if
    /// the others can take them all.
    fn rebalance(&mut self, cluster: &mut Cluster<'_>, loads: &mut Loads) {
        let engines = loads.engines.len();
        for engine in 1..engines {
            let load = loads.engines[engine];
            let step = cluster.profile(engine).decode_model().step(load.streams, load.kv);
            if step > self.tpot {
                let streams = loads.streams_of(engine);
                self.move_away(cluster, loads, engine, streams.into_iter().take(MIGRATE_MAX));
            }
        }
        let fleet = Fleet { cluster, loads };
        let decoding = (1..engines - 1).filter(|engine| decodes(fleet, *engine));
        let few = least(decoding, |engine| fleet.streams(engine));
        if let Some(engine) = few.filter(|e| loads.engines[*e].streams as usize <= MIGRATE_MAX) {
            let streams = loads.streams_of(engine);
            self.move_away(cluster, loads, engine, streams.into_iter());
        }
    }

    fn move_away(
        &mut self,
        cluster: &mut Cluster<'_>,
        loads: &mut Loads,
        from: usize,
        streams: impl Iterator<Item = usize>,
    ) {
        for request in streams.collect::<Vec<_>>() {
            let fleet = Fleet { cluster, loads };
            let Some(to) = self.packed(fleet, request, Some(from)) else { return };
            loads.migrate(cluster, request, from, to);
        }
        self.flips += u64::from(loads.engines[from].streams == 0);
    }
}

/// Returns whether the engine decodes. The last engine is reserved for decode, the first for
/// prefill.
fn decodes(fleet: Fleet<'_, '_>, engine: usize) -> bool {
    engine + 1 == fleet.engines() || (engine > 0 && fleet.loads.engines[engine].streams > 0)
}

impl Rival for Llumnix {
    fn every(&self) -> Option<Seconds> {
        self.migrates.then_some(MIGRATE_EVERY)
    }

    fn place(&mut self, fleet: Fleet<'_, '_>, request: usize) -> Route {
        let ttft = |engine| fleet.predicted_prefill(request, engine).get();
        let free = (0..fleet.engines()).filter(|engine| !decodes(fleet, *engine));
        Route::Prefill(least(free, ttft).unwrap_or(0))
    }

    fn decode_engine(&mut self, fleet: Fleet<'_, '_>, request: usize, _from: usize) -> usize {
        if let Some(engine) = self.packed(fleet, request, None) {
            return engine;
        }
        let idle = (1..fleet.engines()).filter(|engine| !decodes(fleet, *engine));
        if let Some(engine) = least(idle, |engine| fleet.loads.engines[engine].backlog().get()) {
            self.flips += 1;
            return engine;
        }
        let tpot = |engine| fleet.predicted_tpot(request, engine).get();
        least(1..fleet.engines(), tpot).unwrap_or(0)
    }

    fn ended(&mut self, fleet: Fleet<'_, '_>, _request: usize, engine: usize) {
        self.flips += u64::from(fleet.loads.engines[engine].streams == 0);
    }

    fn plan(&mut self, cluster: &mut Cluster<'_>, loads: &mut Loads) {
        self.rebalance(cluster, loads);
    }

    fn flips(&self) -> u64 {
        self.flips
    }
}
