//! Counters of one engine, for reporting and for the `max_queued` and idle checks.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Debug, Default)]
pub(crate) struct EmulatorCounters {
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
    pub preemptions: AtomicU64,
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

/// Snapshot of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Hand-offs whose KV was received.
    pub transfers_in: u64,
    /// Bytes of KV received.
    pub bytes_in: u64,
    /// Bytes of KV read by other engines.
    pub bytes_out: u64,
    /// Hand-offs whose KV was not received.
    pub transfers_failed: u64,
    /// Failed hand-offs whose prompt was computed here instead.
    pub recomputes: u64,
    /// Prefills whose KV was not read before the lease expired.
    pub leases_expired: u64,
    /// Reads after the lease had expired.
    pub late_reads: u64,
    /// Requests of a kind for which the engine was not started, and on which it aborted.
    pub assertions: u64,
    /// Sequences cancelled by a client disconnect.
    pub aborts: u64,
    /// Preemptions: the KV memory was exhausted.
    pub preemptions: u64,
    /// Requests that ended without an error.
    pub finished: u64,
    /// Requests that failed after they were accepted.
    pub errors: u64,
    /// Prompt tokens computed by this engine.
    pub prompt_computed: u64,
    /// Prompt tokens found in the prefix cache.
    pub prompt_cached: u64,
    /// Tokens generated.
    pub generated: u64,
    /// Requests in progress.
    pub open: u64,
    /// Running sequences.
    pub running: u64,
    /// Sequences that wait for a step, for memory or for KV.
    pub waiting: u64,
    /// Prefills whose KV is held for a reader.
    pub held: u64,
    /// KV tokens in use, including memory granted to hand-offs.
    pub kv_used: u64,
    /// Steps that ended 5 ms or more after their deadline: clients saw a delay of the machine, not
    /// of the model.
    pub late_steps: u64,
    /// Time that the model permanently fell behind, in microseconds.
    pub lost_micros: u64,
}

impl EmulatorCounters {
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
            preemptions: of(&self.preemptions),
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
