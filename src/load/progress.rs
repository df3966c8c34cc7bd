//! Monotonic counters of a running load, written by the requests and read by a live view.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tidegate_sim::GapHistogram;
use tidegate_types::Seconds;

use crate::failure::RequestFailure;

/// Counters of a running load.
#[derive(Debug, Default)]
pub struct LoadProgress {
    sent: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    tokens: AtomicU64,
    firsts: AtomicU64,
    ttft_micros: AtomicU64,
    gaps: AtomicU64,
    gap_micros: AtomicU64,
    late_micros_max: AtomicU64,
    failures: Mutex<BTreeMap<RequestFailure, u64>>,
    itl: Mutex<GapHistogram>,
}

/// Snapshot of the counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadSnapshot {
    /// Requests sent.
    pub sent: u64,
    /// Requests that ended without an error.
    pub done: u64,
    /// Requests that ended with an error.
    pub failed: u64,
    /// Tokens received.
    pub tokens: u64,
    firsts: u64,
    ttft_micros: u64,
    gaps: u64,
    gap_micros: u64,
}

impl LoadProgress {
    pub(crate) fn sent(&self, late: Duration) {
        self.sent.fetch_add(1, Relaxed);
        self.late_micros_max.fetch_max(late.as_micros() as u64, Relaxed);
    }

    pub(crate) fn first(&self, ttft: Seconds) {
        self.firsts.fetch_add(1, Relaxed);
        self.ttft_micros.fetch_add((ttft.get() * 1e6) as u64, Relaxed);
    }

    pub(crate) fn tokens(&self, count: u32) {
        self.tokens.fetch_add(u64::from(count), Relaxed);
    }

    pub(crate) fn failed(&self, failure: RequestFailure) {
        self.failed.fetch_add(1, Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry(failure).or_default() += 1;
    }

    pub(crate) fn done(&self, gaps: u64, gap_time: Seconds) {
        self.done.fetch_add(1, Relaxed);
        self.gaps.fetch_add(gaps, Relaxed);
        self.gap_micros.fetch_add((gap_time.get() * 1e6) as u64, Relaxed);
    }

    /// Counts the gaps between the chunks of a request, when it ends.
    pub(crate) fn gaps_of(&self, gaps: &[Seconds]) {
        let mut itl = self.itl.lock().unwrap_or_else(PoisonError::into_inner);
        for gap in gaps {
            itl.add(*gap, 1);
        }
    }

    /// Returns the distribution of the gaps between chunks of requests that have ended.
    pub fn gaps(&self) -> GapHistogram {
        self.itl.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the number of failed requests by reason.
    pub fn failures(&self) -> Vec<(RequestFailure, u64)> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.iter().map(|(failure, count)| (*failure, *count)).collect()
    }

    /// Returns the largest delay between a scheduled and an actual send. Above some milliseconds
    /// the load machine is overloaded, which distorts the figures.
    pub fn late_max(&self) -> Seconds {
        Seconds(self.late_micros_max.load(Relaxed) as f64 / 1e6)
    }

    /// Returns a snapshot of the counters.
    pub fn snapshot(&self) -> LoadSnapshot {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        LoadSnapshot {
            sent: of(&self.sent),
            done: of(&self.done),
            failed: of(&self.failed),
            tokens: of(&self.tokens),
            firsts: of(&self.firsts),
            ttft_micros: of(&self.ttft_micros),
            gaps: of(&self.gaps),
            gap_micros: of(&self.gap_micros),
        }
    }
}

impl LoadSnapshot {
    /// Returns the mean TTFT of first tokens received since `before`.
    pub fn ttft_since(&self, before: &LoadSnapshot) -> Option<Seconds> {
        mean(self.ttft_micros - before.ttft_micros, self.firsts - before.firsts)
    }

    /// Returns the mean TPOT of requests ended since `before`.
    pub fn tpot_since(&self, before: &LoadSnapshot) -> Option<Seconds> {
        mean(self.gap_micros - before.gap_micros, self.gaps - before.gaps)
    }
}

fn mean(micros: u64, count: u64) -> Option<Seconds> {
    (count > 0).then(|| Seconds(micros as f64 / 1e6 / count as f64))
}
