//! Demand per pool: arrived and waiting work, counted on arrival and by the dispatcher, read by the
//! control loop.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_types::{Seconds, Tokens};

/// One pool's demand. Arrivals are monotonic counters; waiting work is a level.
#[derive(Debug, Default)]
pub struct Demand {
    requests: AtomicU64,
    prefill_nanos: AtomicU64,
    prompt_tokens: AtomicU64,
    output_tokens: AtomicU64,
    waiting_requests: AtomicU64,
    waiting_prefill_nanos: AtomicU64,
    waiting_decodes: AtomicU64,
}

/// A pool's demand at one moment. `requests`, `prefill`, `prompt` and `output` are totals since the
/// start.
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
    /// Requests in the EDF queue.
    pub waiting_requests: u32,
    /// Their predicted prefill work.
    pub waiting_prefill: Seconds,
    /// Prefilled requests that wait for a decode backend.
    pub waiting_decodes: u32,
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

    /// Sets the waiting work. Called by the dispatcher only.
    pub fn set_waiting(&self, requests: usize, prefill: Seconds, decodes: usize) {
        self.waiting_requests.store(requests as u64, Relaxed);
        self.waiting_prefill_nanos.store(nanos(prefill), Relaxed);
        self.waiting_decodes.store(decodes as u64, Relaxed);
    }

    /// All counters.
    pub fn totals(&self) -> DemandTotals {
        let seconds = |counter: &AtomicU64| Seconds(counter.load(Relaxed) as f64 / 1e9);
        DemandTotals {
            requests: self.requests.load(Relaxed),
            prefill: seconds(&self.prefill_nanos),
            prompt: Tokens(self.prompt_tokens.load(Relaxed)),
            output: Tokens(self.output_tokens.load(Relaxed)),
            waiting_requests: self.waiting_requests.load(Relaxed) as u32,
            waiting_prefill: seconds(&self.waiting_prefill_nanos),
            waiting_decodes: self.waiting_decodes.load(Relaxed) as u32,
        }
    }
}

fn nanos(span: Seconds) -> u64 {
    (span.get() * 1e9) as u64
}
