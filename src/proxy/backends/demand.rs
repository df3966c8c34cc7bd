//! Demand per pool: arrived work, counted on arrival and read by the control loop, and the number of
//! waiting requests, set by the dispatcher and read by the fast path.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_scheduler::planner::{ArrivalCounters, ArrivalTotals};
use tidegate_types::Targets;

/// One pool's demand.
#[derive(Debug, Default)]
pub struct Demand {
    /// What has arrived at this gateway since the start.
    pub arrivals: ArrivalCounters,
    /// What other gateways have reported as arrived there since then.
    pub others: ArrivalCounters,
    waiting_requests: AtomicU64,
    waiting_batch: AtomicU64,
}

impl Demand {
    /// What has arrived at all gateways since the start.
    pub fn totals(&self) -> ArrivalTotals {
        self.arrivals.totals() + self.others.totals()
    }

    /// Number of requests that wait for their first leg before a request with these targets: batch work
    /// waits behind all others.
    pub fn waiting_before(&self, targets: &Targets) -> u64 {
        let batch = if targets.is_batch() { self.waiting_batch.load(Relaxed) } else { 0 };
        self.waiting_requests.load(Relaxed) + batch
    }

    /// Sets the numbers of waiting requests, batch work apart. Called by the dispatcher only.
    pub fn set_waiting(&self, interactive: usize, batch: usize) {
        self.waiting_requests.store(interactive as u64, Relaxed);
        self.waiting_batch.store(batch as u64, Relaxed);
    }
}
