//! Demand per pool: arrived work, counted on arrival and read by the control loop, and the number of
//! waiting requests, set by the dispatcher and read by the fast path.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_scheduler::planner::{ArrivalCounters, ArrivalTotals};

/// One pool's demand.
#[derive(Debug, Default)]
pub struct Demand {
    /// What has arrived at this gateway since the start.
    pub arrivals: ArrivalCounters,
    /// What other gateways have reported as arrived there since then.
    pub others: ArrivalCounters,
    waiting_requests: AtomicU64,
}

impl Demand {
    /// What has arrived at all gateways since the start.
    pub fn totals(&self) -> ArrivalTotals {
        self.arrivals.totals() + self.others.totals()
    }

    /// Number of requests that wait for their first leg.
    pub fn waiting(&self) -> u64 {
        self.waiting_requests.load(Relaxed)
    }

    /// Sets the number of waiting requests. Called by the dispatcher only.
    pub fn set_waiting(&self, requests: usize) {
        self.waiting_requests.store(requests as u64, Relaxed);
    }
}
