//! A fleet whose loads are read once for a placement.

use crate::cost::Matches;
use crate::dispatch::Accounts;
use crate::inflight::Account;
use crate::placement::{BackendLoad, CONSIDERED_MAX, FleetLoads, PrefillRequest};
use std::cell::RefCell;
use std::sync::Arc;
use tidegate_types::{BackendId, PoolId, Tokens};

/// Loads of one placement: the decision, the charge and the record of the candidates see the same
/// values, each derived from the counters once. Keeps the first [`CONSIDERED_MAX`] loads.
pub(super) struct OneReading<'a, A> {
    fleet: &'a A,
    loads: RefCell<Vec<(BackendId, BackendLoad)>>,
}

impl<'a, A: Accounts> OneReading<'a, A> {
    /// A reading that begins now, of the backends of `pool`.
    pub(super) fn new(fleet: &'a A, pool: PoolId) -> OneReading<'a, A> {
        let kept = fleet.pool(pool).len().min(CONSIDERED_MAX);
        OneReading { fleet, loads: RefCell::new(Vec::with_capacity(kept)) }
    }
}

impl<A: Accounts> FleetLoads for OneReading<'_, A> {
    fn pool(&self, pool: PoolId) -> &[BackendId] {
        self.fleet.pool(pool)
    }

    fn load(&self, backend: BackendId) -> BackendLoad {
        let mut loads = self.loads.borrow_mut();
        if let Some((_, load)) = loads.iter().find(|(of, _)| *of == backend) {
            return *load;
        }
        let load = self.fleet.load(backend);
        if loads.len() < loads.capacity() {
            loads.push((backend, load));
        }
        load
    }

    fn cached(&self, job: &PrefillRequest, backend: BackendId) -> Tokens {
        self.fleet.cached(job, backend)
    }

    fn holders(&self, job: &PrefillRequest) -> Matches {
        self.fleet.holders(job)
    }
}

impl<A: Accounts> Accounts for OneReading<'_, A> {
    type Counter = A::Counter;

    fn account(&self, on: BackendId) -> &Arc<Account<A::Counter>> {
        self.fleet.account(on)
    }

    fn predicted_hit(&self, job: &PrefillRequest, on: BackendId) -> Tokens {
        self.fleet.predicted_hit(job, on)
    }

    fn records_candidates(&self) -> bool {
        self.fleet.records_candidates()
    }
}
