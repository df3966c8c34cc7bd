//! `/metrics` page under vLLM's names (docs/spec/engine-protocols.md#vllm-metrics, and the recorded
//! page).

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::config::{EmulatedEngine, VllmConnector};
use crate::engine::EmulatedState;
use crate::tokens::BLOCK_TOKENS;

/// Renders the page.
pub fn page(engine: &EmulatedState) -> String {
    let labels = format!("engine=\"0\",model_name={:?}", engine.config.model);
    let mut page = MetricsPage { text: String::with_capacity(8 << 10), labels };
    requests(engine, &mut page);
    transfers(engine, &mut page);
    let blocks = engine.config.profile.kv_capacity.get() / BLOCK_TOKENS as u64;
    let info = format!(",block_size=\"{BLOCK_TOKENS}\",num_gpu_blocks=\"{blocks}\"");
    page.row("gauge", "cache_config_info", &info, 1.0);
    page.text
}

/// A page with the labels of all its rows.
struct MetricsPage {
    text: String,
    labels: String,
}

impl MetricsPage {
    /// Appends a row, after its `# TYPE` line if the family is new. `more`: further labels.
    fn row(&mut self, kind: &str, name: &str, more: &str, value: f64) {
        let MetricsPage { text, labels } = self;
        let family = name.trim_end_matches("_sum").trim_end_matches("_count");
        let family = if kind == "histogram" { family } else { name };
        if !text.contains(&format!("# TYPE vllm:{family} ")) {
            // Writing to a String cannot fail.
            writeln!(text, "# TYPE vllm:{family} {kind}").ok();
        }
        writeln!(text, "vllm:{name}{{{labels}{more}}} {value:?}").ok();
    }
}

fn of(counter: &AtomicU64) -> f64 {
    counter.load(Relaxed) as f64
}

/// Queue, caches, tokens and outcomes of requests.
fn requests(engine: &EmulatedState, page: &mut MetricsPage) {
    let counters = &engine.counters;
    let (computed, cached, moved) =
        (of(&counters.prompt_computed), of(&counters.prompt_cached), of(&counters.tokens_in));
    let deferred = of(&counters.deferred);
    let mut row =
        |kind: &str, name: &str, more: &str, value: f64| page.row(kind, name, more, value);
    row("gauge", "num_requests_running", "", of(&counters.running));
    row("gauge", "num_requests_waiting", "", of(&counters.waiting));
    let by_reason = "num_requests_waiting_by_reason";
    row("gauge", by_reason, ",reason=\"capacity\"", (of(&counters.waiting) - deferred).max(0.0));
    row("gauge", by_reason, ",reason=\"deferred\"", deferred);
    row("gauge", "kv_cache_usage_perc", "", engine.kv_usage());
    row("counter", "prefix_cache_queries_total", "", computed + cached + moved);
    row("counter", "prefix_cache_hits_total", "", cached);
    row("counter", "external_prefix_cache_queries_total", "", computed + moved);
    row("counter", "external_prefix_cache_hits_total", "", moved);
    row("counter", "num_preemptions_total", "", of(&counters.preemptions));
    row("counter", "prompt_tokens_total", "", computed + cached + moved);
    let source = "prompt_tokens_by_source_total";
    row("counter", source, ",source=\"local_compute\"", computed);
    row("counter", source, ",source=\"local_cache_hit\"", cached);
    row("counter", source, ",source=\"external_kv_transfer\"", moved);
    row("counter", "prompt_tokens_cached_total", "", cached + moved);
    row("counter", "generation_tokens_total", "", of(&counters.generated));
    let success = "request_success_total";
    row("counter", success, ",finished_reason=\"length\"", of(&counters.finished));
    row("counter", success, ",finished_reason=\"error\"", of(&counters.errors));
    // A real vLLM also reports 0 after disconnects (tests/real/engines/README.md).
    row("counter", success, ",finished_reason=\"abort\"", 0.0);
}

/// Hand-offs, under the names of the engine's connector.
fn transfers(engine: &EmulatedState, page: &mut MetricsPage) {
    let counters = &engine.counters;
    let mut row = |kind: &str, name: &str, value: f64| page.row(kind, name, "", value);
    let (moved, transfers) = (of(&counters.bytes_in), of(&counters.transfers_in));
    let (failed, expired) = (of(&counters.transfers_failed), of(&counters.leases_expired));
    let connector = match engine.config.kind {
        EmulatedEngine::Vllm => Some(engine.config.connector),
        _ => None,
    };
    match connector {
        Some(VllmConnector::Nixl | VllmConnector::NixlPush) => {
            row("histogram", "nixl_bytes_transferred_sum", moved);
            row("histogram", "nixl_bytes_transferred_count", transfers);
            row("counter", "nixl_num_failed_transfers_total", failed);
            row("counter", "nixl_num_failed_notifications_total", 0.0);
            row("counter", "nixl_num_kv_expired_reqs_total", expired);
            let late = of(&counters.late_reads);
            row("counter", "nixl_num_notifications_after_expiry_total", late);
        }
        Some(VllmConnector::Mooncake) => {
            row("histogram", "mooncake_bytes_transferred_sum", moved);
            row("histogram", "mooncake_bytes_transferred_count", transfers);
            row("counter", "mooncake_num_failed_transfers_total", 0.0);
            row("counter", "mooncake_num_failed_recvs_total", failed);
            row("counter", "mooncake_num_kv_expired_reqs_total", expired);
        }
        // These connectors report only prompt_tokens_by_source.
        Some(VllmConnector::Offloading | VllmConnector::SharedStore) | None => {}
    }
}
