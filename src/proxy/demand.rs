//! What arrives and what waits, summed where it happens (at the door and in the queue) and read by
//! the control loop. Counters only.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_types::{Seconds, Tokens};

/// One pool's demand. Arrivals only grow; waiting goes up and down.
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

/// A pool's demand at one moment. The first four are totals since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct DemandTotals {
    /// Requests that arrived.
    pub requests: u64,
    /// Their predicted prefill work.
    pub prefill: Seconds,
    /// Their prompt tokens.
    pub prompt: Tokens,
    /// Their expected output tokens.
    pub output: Tokens,
    /// Requests in the deadline queue now.
    pub waiting_requests: u32,
    /// Their predicted prefill work.
    pub waiting_prefill: Seconds,
    /// Prefilled requests that wait for a decode backend now.
    pub waiting_decodes: u32,
}

impl Demand {
    /// A request arrived.
    pub fn arrived(&self, prefill: Seconds, prompt: Tokens, output: Tokens) {
        self.requests.fetch_add(1, Relaxed);
        self.prefill_nanos.fetch_add(nanos(prefill), Relaxed);
        self.prompt_tokens.fetch_add(prompt.get(), Relaxed);
        self.output_tokens.fetch_add(output.get(), Relaxed);
    }

    /// How many requests wait for their first leg.
    pub fn waiting(&self) -> u64 {
        self.waiting_requests.load(Relaxed)
    }

    /// What waits now. Written by the dispatcher alone.
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
