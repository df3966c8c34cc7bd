//! Bookkeeping shared by the rivals. A [`Rival`] policy decides; [`Dispatch`] sends the legs, keeps
//! the [`EngineLoads`] and wakes the policy.

use tidegate_types::{Seconds, Tokens};

use crate::cluster::{Cluster, Router};
use crate::rivals::loads::{EngineLoads, own_prefill};

/// A rival's route of a request at its arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Prefill and decode on this engine.
    Colocated(usize),
    /// Prefill on this engine; the decode engine is chosen after it.
    Prefill(usize),
}

/// Engines and their loads, as rivals read them.
#[derive(Clone, Copy)]
pub(crate) struct RivalFleet<'a, 't> {
    pub(crate) cluster: &'a Cluster<'t>,
    pub(crate) loads: &'a EngineLoads,
}

/// A routing policy without its bookkeeping.
pub(crate) trait Rival {
    /// Interval between two calls of [`Rival::plan`]; `None`: never.
    fn every(&self) -> Option<Seconds> {
        None
    }
    /// Returns the route of a request that arrived.
    fn place(&mut self, fleet: RivalFleet<'_, '_>, request: usize) -> Route;
    /// Returns the decode engine of a request whose prefill ended on `from`.
    fn decode_engine(&mut self, fleet: RivalFleet<'_, '_>, request: usize, from: usize) -> usize;
    /// A stream ended on `engine`.
    fn ended(&mut self, _fleet: RivalFleet<'_, '_>, _request: usize, _engine: usize) {}
    /// Periodic planning.
    fn plan(&mut self, _cluster: &mut Cluster<'_>, _loads: &mut EngineLoads) {}
    /// Role changes so far.
    fn flips(&self) -> u64 {
        0
    }
}

/// Router that applies the decisions of a rival.
pub(crate) struct Dispatch<R> {
    rival: R,
    loads: EngineLoads,
}

impl<R: Rival> Dispatch<R> {
    pub(crate) fn new(rival: R, engines: usize) -> Dispatch<R> {
        Dispatch { rival, loads: EngineLoads::new(engines) }
    }

    fn plan_later(&self, cluster: &mut Cluster<'_>) {
        if let Some(every) = self.rival.every() {
            cluster.wake_at(cluster.now() + every);
        }
    }
}

impl<R: Rival> Router for Dispatch<R> {
    fn arrived(&mut self, cluster: &mut Cluster<'_>, request: usize) {
        if request == 0 {
            self.plan_later(cluster);
        }
        let fleet = RivalFleet { cluster, loads: &self.loads };
        match self.rival.place(fleet, request) {
            Route::Colocated(engine) => self.loads.send_colocated(cluster, request, engine),
            Route::Prefill(engine) => self.loads.send_prefill(cluster, request, engine),
        }
    }

    fn prefilled(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.loads.settle_prefill(request);
        let fleet = RivalFleet { cluster, loads: &self.loads };
        let to = self.rival.decode_engine(fleet, request, engine);
        self.loads.hand_off(cluster, request, engine, to);
    }

    fn began(&mut self, cluster: &mut Cluster<'_>, request: usize, _engine: usize) {
        self.loads.settle_prefill(request);
        self.loads.arrived(cluster, request);
    }

    fn migrated(&mut self, cluster: &mut Cluster<'_>, request: usize, _to: usize) {
        self.loads.arrived(cluster, request);
    }

    fn ended(&mut self, cluster: &mut Cluster<'_>, request: usize, engine: usize) {
        self.loads.settle_stream(cluster, request);
        self.rival.ended(RivalFleet { cluster, loads: &self.loads }, request, engine);
    }

    fn woken(&mut self, cluster: &mut Cluster<'_>) {
        self.rival.plan(cluster, &mut self.loads);
        self.plan_later(cluster);
    }

    fn flips(&self) -> u64 {
        self.rival.flips()
    }
}

impl<'a, 't> RivalFleet<'a, 't> {
    /// Returns the number of engines.
    pub(crate) fn engines(&self) -> usize {
        self.loads.engines.len()
    }

    /// Returns the mean TPOT of an engine's streams with `request` added. Streams in transfer
    /// count.
    pub(crate) fn predicted_tpot(&self, request: usize, engine: usize) -> Seconds {
        let load = &self.loads.engines[engine];
        let kv = self.kv(engine) + self.cluster.trace().arrivals[request].prompt;
        self.cluster.profile(engine).decode_model().step(load.streams + 1, kv)
    }

    /// Returns the time until an engine would have computed `request`'s prompt: queued prefill work
    /// plus its own.
    pub(crate) fn predicted_prefill(&self, request: usize, engine: usize) -> Seconds {
        let (own, _) = own_prefill(self.cluster, request, engine);
        self.loads.engines[engine].backlog() + own
    }

    /// Returns whether an engine has a sequence slot and KV memory for one more stream.
    pub(crate) fn has_place(&self, request: usize, engine: usize) -> bool {
        let profile = self.cluster.profile(engine);
        let kv = self.kv(engine) + self.cluster.trace().arrivals[request].prompt;
        self.loads.engines[engine].streams < profile.max_num_seqs && kv <= profile.kv_capacity
    }

    /// Returns the KV tokens of an engine's streams, those in transfer included.
    pub(crate) fn kv(&self, engine: usize) -> Tokens {
        self.loads.kv(self.cluster, engine)
    }

    /// Returns the number of streams on an engine.
    pub(crate) fn streams(&self, engine: usize) -> f64 {
        f64::from(self.loads.engines[engine].streams)
    }
}
