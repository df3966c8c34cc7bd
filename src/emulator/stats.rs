//! Counters of one engine: for tests, and for `/metrics` under vLLM's names.

use std::fmt::Write;
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
    pub aborts: AtomicU64,
    pub finished: AtomicU64,
    pub prompt_computed: AtomicU64,
    pub generated: AtomicU64,
    pub running: AtomicU64,
    pub waiting: AtomicU64,
    pub kv_used: AtomicU64,
    /// Steps that ended more than a tick after their deadline: the machine is too slow.
    pub late_steps: AtomicU64,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Hand-offs whose KV came.
    pub transfers_in: u64,
    /// Bytes of KV that came.
    pub bytes_in: u64,
    /// Bytes of KV that were taken from here.
    pub bytes_out: u64,
    /// Hand-offs whose KV did not come.
    pub transfers_failed: u64,
    /// Of those, the ones that were prefilled here instead.
    pub recomputes: u64,
    /// Prefills whose KV nobody took in time.
    pub leases_expired: u64,
    /// Sequences that a client left.
    pub aborts: u64,
    /// Requests that ended well.
    pub finished: u64,
    /// Sequences that run now.
    pub running: u64,
    /// Sequences that wait now.
    pub waiting: u64,
    /// KV tokens in use now.
    pub kv_used: u64,
    /// Steps that ended late: figures taken meanwhile show the machine, not the model.
    pub late_steps: u64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        Stats {
            transfers_in: of(&self.transfers_in),
            bytes_in: of(&self.bytes_in),
            bytes_out: of(&self.bytes_out),
            transfers_failed: of(&self.transfers_failed),
            recomputes: of(&self.recomputes),
            leases_expired: of(&self.leases_expired),
            aborts: of(&self.aborts),
            finished: of(&self.finished),
            running: of(&self.running),
            waiting: of(&self.waiting),
            kv_used: of(&self.kv_used),
            late_steps: of(&self.late_steps),
        }
    }

    /// The page of `/metrics` under vLLM's names (engine_protocols.md §6.1).
    pub(crate) fn page(&self, model: &str, kv_capacity: u64) -> String {
        let of = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        let labels = format!("engine=\"0\",model_name=\"{model}\"");
        let mut page = String::new();
        let mut row = |name: &str, more: &str, value: f64| {
            // Writing to a String cannot fail.
            writeln!(page, "vllm:{name}{{{labels}{more}}} {value}").ok();
        };
        row("num_requests_running", "", of(&self.running));
        row("num_requests_waiting", "", of(&self.waiting));
        row("kv_cache_usage_perc", "", of(&self.kv_used) / kv_capacity as f64);
        row("generation_tokens_total", "", of(&self.generated));
        row("prompt_tokens_total", "", of(&self.prompt_computed) + of(&self.tokens_in));
        let source = "prompt_tokens_by_source_total";
        row(source, ",source=\"local_compute\"", of(&self.prompt_computed));
        row(source, ",source=\"local_cache_hit\"", 0.0);
        row(source, ",source=\"external_kv_transfer\"", of(&self.tokens_in));
        row("request_success_total", ",finished_reason=\"length\"", of(&self.finished));
        row("nixl_bytes_transferred_sum", "", of(&self.bytes_in));
        row("nixl_bytes_transferred_count", "", of(&self.transfers_in));
        row("nixl_num_failed_transfers_total", "", of(&self.transfers_failed));
        row("nixl_num_kv_expired_reqs_total", "", of(&self.leases_expired));
        row("nixl_num_notifications_after_expiry_total", "", of(&self.late_reads));
        page
    }
}
