//! Demand per pool: arrived work, counted on arrival and read by the control loop, and the number of
//! waiting requests, set by the dispatcher and read by the fast path.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_types::{Seconds, Tokens};

/// One pool's demand. Arrivals are monotonic counters; `waiting_requests` is a level.
#[derive(Debug, Default)]
pub struct Demand {
    requests: AtomicU64,
    prefill_nanos: AtomicU64,
    prompt_tokens: AtomicU64,
    output_tokens: AtomicU64,
    waiting_requests: AtomicU64,
}

/// A pool's arrivals since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct DemandTotals {
    /// Arrived requests.
    pub requests: u64,
    /// Their predicted prefill work.
    pub prefill: Seconds,
    /// Their prompt tokens.
    pub prompt: Tokens,
    /// Their expected output tokens.
    pub output: Tokens,
}

impl Demand {
    /// Counts an arrival.
    pub fn arrived(&self, prefill: Seconds, prompt: Tokens, output: Tokens) {
        self.requests.fetch_add(1, Relaxed);
        self.prefill_nanos.fetch_add(nanos(prefill), Relaxed);
        self.prompt_tokens.fetch_add(prompt.get(), Relaxed);
        self.output_tokens.fetch_add(output.get(), Relaxed);
    }

    /// Number of requests that wait for their first leg.
    pub fn waiting(&self) -> u64 {
        self.waiting_requests.load(Relaxed)
    }

    /// Sets the number of waiting requests. Called by the dispatcher only.
    pub fn set_waiting(&self, requests: usize) {
        self.waiting_requests.store(requests as u64, Relaxed);
    }

    /// All counters.
    pub fn totals(&self) -> DemandTotals {
        DemandTotals {
            requests: self.requests.load(Relaxed),
            prefill: Seconds(self.prefill_nanos.load(Relaxed) as f64 / 1e9),
            prompt: Tokens(self.prompt_tokens.load(Relaxed)),
            output: Tokens(self.output_tokens.load(Relaxed)),
        }
    }
}

fn nanos(span: Seconds) -> u64 {
    (span.get() * 1e9) as u64
}
