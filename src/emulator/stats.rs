//! Counters of one engine. They only count: nothing is decided from them but `max_queued`.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Live counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub transfers_in: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub tokens_in: AtomicU64,
    pub transfers_failed: AtomicU64,
    pub recomputes: AtomicU64,
    pub leases_expired: AtomicU64,
    pub late_reads: AtomicU64,
    pub assertions: AtomicU64,
    pub aborts: AtomicU64,
    pub finished: AtomicU64,
    pub errors: AtomicU64,
    pub prompt_computed: AtomicU64,
    pub prompt_cached: AtomicU64,
    pub generated: AtomicU64,
    pub open: AtomicU64,
    pub running: AtomicU64,
    pub waiting: AtomicU64,
    pub deferred: AtomicU64,
    pub kv_used: AtomicU64,
    pub late_steps: AtomicU64,
    pub lost_micros: AtomicU64,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Hand-offs whose KV came.
    pub transfers_in: u64,
    /// Bytes of KV that came.
    pub bytes_in: u64,
    /// Bytes of KV that were fetched from here.
    pub bytes_out: u64,
    /// Hand-offs whose KV did not come.
    pub transfers_failed: u64,
    /// Of those, the ones that were prefilled here instead.
    pub recomputes: u64,
    /// Prefills whose KV nobody fetched in time.
    pub leases_expired: u64,
    /// Readers that came after a lease had ended.
    pub late_reads: u64,
    /// Requests of a kind that the engine was not started for, and died of.
    pub assertions: u64,
    /// Sequences that a client left.
    pub aborts: u64,
    /// Requests that ended well.
    pub finished: u64,
    /// Requests that ended with an error after they were accepted.
    pub errors: u64,
    /// Prompt tokens computed here.
    pub prompt_computed: u64,
    /// Prompt tokens found in the prefix cache.
    pub prompt_cached: u64,
    /// Tokens generated.
    pub generated: u64,
    /// Requests being answered now.
    pub open: u64,
    /// Sequences that run now.
    pub running: u64,
    /// Sequences that wait now, for a step, for memory or for KV.
    pub waiting: u64,
    /// Prefills that wait to be fetched now.
    pub held: u64,
    /// KV tokens in use now, memory granted to hand-offs included.
    pub kv_used: u64,
    /// Steps that ended 5 ms or more after their deadline: what clients saw of them is the machine,
    /// not the model.
    pub late_steps: u64,
    /// Time by which the model fell behind for good, in microseconds.
    pub lost_micros: u64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Relaxed);
    }

    pub(crate) fn snapshot(&self, held: usize) -> Stats {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        Stats {
            transfers_in: of(&self.transfers_in),
            bytes_in: of(&self.bytes_in),
            bytes_out: of(&self.bytes_out),
            transfers_failed: of(&self.transfers_failed),
            recomputes: of(&self.recomputes),
            leases_expired: of(&self.leases_expired),
            late_reads: of(&self.late_reads),
            assertions: of(&self.assertions),
            aborts: of(&self.aborts),
            finished: of(&self.finished),
            errors: of(&self.errors),
            prompt_computed: of(&self.prompt_computed),
            prompt_cached: of(&self.prompt_cached),
            generated: of(&self.generated),
            open: of(&self.open),
            running: of(&self.running),
            waiting: of(&self.waiting),
            held: held as u64,
            kv_used: of(&self.kv_used),
            late_steps: of(&self.late_steps),
            lost_micros: of(&self.lost_micros),
        }
    }
}
