//! `llumnix` and `llumnix:migrate`: Llumnix's adaptive prefill and decode. Only the first engine
//! (prefill) and the last (decode) have a fixed role. Decodes are packed onto the engine with the
//! highest TPOT that still meets the target; prefills go to engines without decodes. With live
//! migration, engines over the target are relieved and the engine with the fewest streams is
//! emptied.

use tidegate_types::Seconds;

use crate::cluster::{Cluster, Router};
use crate::engine::Work;
use crate::rivals::loads::Loads;
use crate::rivals::{least, predicted_prefill, predicted_tpot};

/// Interval between migration rounds.
const MIGRATE_EVERY: Seconds = Seconds(0.5);
/// Maximum number of streams moved per round.
const MIGRATE_MAX: usize = 8;

/// Policy without engine roles.
pub(crate) struct Llumnix {
    tpot: Seconds,
    migrates: bool,
    loads: Loads,
    /// Count of engines that started or stopped decoding.
    flips: u64,
}

impl Llumnix {
    pub(crate) fn new(tpot: Seconds, migrates: bool, engines: usize) -> Llumnix {
        Llumnix { tpot, migrates, loads: Loads::new(engines), flips: 0 }
    }

    fn count(&self) -> usize {
        self.loads.engines.len()
    }

    /// Returns whether the engine decodes. The last engine is reserved for decode, the first for
    /// prefill.
    fn decodes(&self, engine: usize) -> bool {
        engine + 1 == self.count() || (engine > 0 && self.loads.engines[engine].streams > 0)
    }

    /// Bin packing: the decoding engine with the highest predicted TPOT within the target.
    fn packed(&self, cluster: &Cluster<'_>, request: usize, but: Option<usize>) -> Option<usize> {
        let tpot = |engine| predicted_tpot(cluster, &self.loads, request, engine);
        let kv = cluster.trace().arrivals[request].prompt;
        let fits = |engine: &usize| {
            let profile = cluster.profile(*engine);
            self.decodes(*engine)
                && Some(*engine) != but
                && tpot(*engine) <= self.tpot
                && self.loads.engines[*engine].kv + kv <= profile.kv_capacity
        };
        least((1..self.count()).filter(fits), |engine| -tpot(engine).get())
    }

    fn decode_engine(&mut self, cluster: &Cluster<'_>, request: usize) -> usize {
        if let Some(engine) = self.packed(cluster, request, None) {
            return engine;
        }
        let idle = (1..self.count()).filter(|engine| !self.decodes(*engine));
        if let Some(engine) = least(idle, |engine| self.loads.engines[engine].backlog().get()) {
            self.flips += 1;
            return engine;
        }
        let tpot = |engine| predicted_tpot(cluster, &self.loads, request, engine).get();
        least(1..self.count(), tpot).unwrap_or(0)
    }

    /// Relieves engines over the TPOT target, then empties the engine with the fewest streams if
    /// the others can take them all.
    fn rebalance(&mut self, cluster: &mut Cluster<'_>) {
        for engine in 1..self.count() {
            let load = self.loads.engines[engine];
            let step = cluster.profile(engine).decode_model().step(load.streams, load.kv);
            if step > self.tpot {
                let streams = self.loads.streams_of(engine);
                self.move_away(cluster, engine, streams.into_iter().take(MIGRATE_MAX));
            }
        }
        let decoding = (1..self.count() - 1).filter(|engine| self.decodes(*engine));
        let few = least(decoding, |engine| f64::from(self.loads.engines[engine].streams));
        if let Some(engine) = few.filter(|e| self.loads.engines[*e].streams as usize <= MIGRATE_MAX)
        {
            let streams = self.loads.streams_of(engine);
            self.move_away(cluster, engine, streams.into_iter());
        }
    }

    fn move_away(
        &mut self,
        cluster: &mut Cluster<'_>,
        from: usize,
        streams: impl Iterator<Item = usize>,
    ) {
        for request in streams.collect::<Vec<_>>() {
            let Some(to) = self.packed(cluster, request, Some(from)) else { return };
            self.loads.stream(cluster, request, to);
            cluster.migrate(request, from, to);
        }
        self.flips += u64::from(self.loads.engines[from].streams == 0);
    }
}

impl Router for Llumnix {
    fn arrived(&mut self, cluster: &mut Cluster<'_>, request: usize) {
        if request == 0 && self.migrates {
            cluster.wake_at(cluster.now() + MIGRATE_EVERY);
        }
        let ttft = |engine| predicted_prefill(cluster, &self.loads, request, engine).get();
        let free = (0..self.count()).filter(|engine| !self.decodes(*engine));
        let engine = least(free, ttft).unwrap_or(0);
        self.loads.prefill(cluster, request, engine);
        cluster.admit(request, engine, Work::PrefillOnly);
    }

    fn prefilled(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.loads.prefilled(request);
        let to = self.decode_engine(cluster, request);
        self.loads.stream(cluster, request, to);
        cluster.hand_over(request, engine, to);
    }

    fn began(&mut self, _cluster: &mut Cluster<'_>, _request: usize, _engine: usize) {}

    fn ended(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.loads.ended(cluster, request);
        self.flips += u64::from(self.loads.engines[engine].streams == 0);
    }

    fn woken(&mut self, cluster: &mut Cluster<'_>) {
        self.rebalance(cluster);
        cluster.wake_at(cluster.now() + MIGRATE_EVERY);
    }

    fn flips(&self) -> u64 {
        self.flips
    }
}
