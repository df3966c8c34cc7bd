//! Load and counters of an engine, read from a /metrics page of vLLM or SGLang or from SGLang's
//! /v1/loads. Values that an engine does not report are `None`, never 0.

use tidegate_types::Tokens;

use crate::prometheus::{MetricSample, samples};

/// One reading of one engine: sums over data-parallel ranks, and the maximum of KV usage. Counters
/// count from the engine's start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineReading {
    /// Running requests.
    pub running: Option<f64>,
    /// Requests queued inside the engine.
    pub waiting: Option<f64>,
    /// Queued requests that wait for KV cache from another engine.
    pub deferred: Option<f64>,
    /// Used share of KV memory, 0 to 1.
    pub kv_usage: Option<f64>,
    /// Capacity of KV memory, in tokens.
    pub kv_capacity: Option<Tokens>,
    /// Prefix-cache block size, in tokens.
    pub kv_block: Option<u32>,
    /// Counter: requests preempted for lack of KV memory.
    pub preemptions: Option<f64>,
    /// Counter: failed KV transfers.
    pub failed_transfers: Option<f64>,
    /// Counter: prefilled requests whose KV lease expired before the transfer.
    pub expired: Option<f64>,
    /// Counter: prompt tokens received from another engine.
    pub transferred: Option<f64>,
    /// Counter: prompt tokens found in the engine's prefix cache.
    pub hits: Option<f64>,
    /// Counter: prompt tokens computed.
    pub computed: Option<f64>,
    /// Uncached prompt tokens computed per second of prefill, as measured by the engine.
    pub prefill_rate: Option<f64>,
}

impl EngineReading {
    /// Reads a /metrics page; unknown samples are ignored.
    ///
    /// ```
    /// use tidegate_signals::engine::EngineReading;
    ///
    /// let page = b"vllm:num_requests_running{engine=\"0\"} 3.0\nvllm:kv_cache_usage_perc 0.25\n";
    /// let reading = EngineReading::of_metrics(page);
    /// assert_eq!((reading.running, reading.kv_usage), (Some(3.0), Some(0.25)));
    /// assert_eq!(reading.waiting, None);
    /// ```
    pub fn of_metrics(page: &[u8]) -> EngineReading {
        let mut reading = EngineReading::default();
        // Name of the hit counter in vLLM versions without `prompt_tokens_by_source`.
        let mut older_hits = None;
        for sample in samples(page).filter(|sample| sample.value.is_finite()) {
            if sample.name == "vllm:prefix_cache_hits_total" {
                add(&mut older_hits, sample.value);
            } else if let Some(name) = sample.name.strip_prefix("vllm:") {
                reading.vllm(name, &sample);
            } else if let Some(name) = sample.name.strip_prefix("sglang:") {
                reading.sglang(name, &sample);
            }
        }
        reading.hits = reading.hits.or(older_hits);
        reading
    }

    /// Returns whether no value was reported.
    pub fn is_empty(&self) -> bool {
        *self == EngineReading::default()
    }

    /// Merges two readings; values of `other` take precedence.
    pub fn or(self, other: EngineReading) -> EngineReading {
        EngineReading {
            running: other.running.or(self.running),
            waiting: other.waiting.or(self.waiting),
            deferred: other.deferred.or(self.deferred),
            kv_usage: other.kv_usage.or(self.kv_usage),
            kv_capacity: other.kv_capacity.or(self.kv_capacity),
            kv_block: other.kv_block.or(self.kv_block),
            preemptions: other.preemptions.or(self.preemptions),
            failed_transfers: other.failed_transfers.or(self.failed_transfers),
            expired: other.expired.or(self.expired),
            transferred: other.transferred.or(self.transferred),
            hits: other.hits.or(self.hits),
            computed: other.computed.or(self.computed),
            prefill_rate: other.prefill_rate.or(self.prefill_rate),
        }
    }

    fn vllm(&mut self, name: &str, sample: &MetricSample<'_>) {
        let value = sample.value;
        let label_is = |label: &str, word: &str| sample.label(label).is_some_and(|is| is == word);
        match name {
            "num_requests_running" => add(&mut self.running, value),
            "num_requests_waiting" => add(&mut self.waiting, value),
            "num_requests_waiting_by_reason" if label_is("reason", "deferred") => {
                add(&mut self.deferred, value);
            }
            "kv_cache_usage_perc" => most(&mut self.kv_usage, value),
            "cache_config_info" => self.vllm_cache(sample),
            "num_preemptions_total" => add(&mut self.preemptions, value),
            "nixl_num_failed_transfers_total"
            | "nixl_num_failed_notifications_total"
            | "mooncake_num_failed_transfers_total"
            | "mooncake_num_failed_recvs_total" => add(&mut self.failed_transfers, value),
            "nixl_num_kv_expired_reqs_total"
            | "nixl_num_notifications_after_expiry_total"
            | "mooncake_num_kv_expired_reqs_total" => add(&mut self.expired, value),
            "prompt_tokens_by_source_total" => match sample.label("source").as_deref() {
                Some("external_kv_transfer") => add(&mut self.transferred, value),
                Some("local_cache_hit") => add(&mut self.hits, value),
                Some("local_compute") => add(&mut self.computed, value),
                _ => {}
            },
            _ => {}
        }
    }

    /// Configuration in the labels of a gauge whose value is always 1.
    fn vllm_cache(&mut self, sample: &MetricSample<'_>) {
        let number = |label: &str| sample.label(label)?.parse::<u32>().ok();
        self.kv_block = number("block_size").or(self.kv_block);
        if let (Some(size), Some(blocks)) = (number("block_size"), number("num_gpu_blocks")) {
            let before = self.kv_capacity.unwrap_or(Tokens::ZERO);
            self.kv_capacity = Some(before + Tokens(u64::from(size) * u64::from(blocks)));
        }
    }

    fn sglang(&mut self, name: &str, sample: &MetricSample<'_>) {
        // All tensor-parallel ranks report the same values.
        if sample.label("tp_rank").is_some_and(|rank| rank != "0") {
            return;
        }
        let value = sample.value;
        match name {
            "num_running_reqs" => add(&mut self.running, value),
            "num_queue_reqs" => add(&mut self.waiting, value),
            "num_decode_transfer_queue_reqs" => add(&mut self.deferred, value),
            "token_usage" => most(&mut self.kv_usage, value),
            "max_total_num_tokens" if value >= 0.0 => {
                let before = self.kv_capacity.unwrap_or(Tokens::ZERO);
                self.kv_capacity = Some(before + Tokens(value as u64));
            }
            "num_retracted_requests_total" => add(&mut self.preemptions, value),
            "num_transfer_failed_reqs_total" | "num_bootstrap_failed_reqs_total" => {
                add(&mut self.failed_transfers, value);
            }
            "cached_tokens_total" => add(&mut self.hits, value),
            _ => {}
        }
    }
}

pub(crate) fn add(sum: &mut Option<f64>, value: f64) {
    *sum = Some(sum.unwrap_or(0.0) + value);
}

pub(crate) fn most(most: &mut Option<f64>, value: f64) {
    *most = Some(most.map_or(value, |before| before.max(value)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vllm_page_is_read() {
        let page = br#"
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 1.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="deferred"} 5.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.75
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0
vllm:num_preemptions_total{engine="0",model_name="tiny"} 7.0
vllm:num_preemptions_created{engine="0",model_name="tiny"} 1.7e+09
vllm:nixl_num_failed_transfers_total{engine="0",model_name="tiny"} 1.0
vllm:nixl_num_failed_notifications_total{engine="0",model_name="tiny"} 1.0
vllm:nixl_num_kv_expired_reqs_total{engine="0",model_name="tiny"} 4.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_compute"} 240.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_cache_hit"} 3840.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="external_kv_transfer"} 2243.0
"#;
        let expected = EngineReading {
            running: Some(4.0),
            waiting: Some(2.0),
            deferred: Some(5.0),
            kv_usage: Some(0.75),
            kv_capacity: Some(Tokens(1600)),
            kv_block: Some(16),
            preemptions: Some(7.0),
            failed_transfers: Some(2.0),
            expired: Some(4.0),
            transferred: Some(2243.0),
            hits: Some(3840.0),
            computed: Some(240.0),
            prefill_rate: None,
        };
        assert_eq!(EngineReading::of_metrics(page), expected);
    }

    #[test]
    fn an_sglang_page_counts_each_tensor_parallel_group_once() {
        let page = br#"
sglang:num_running_reqs{engine_type="decode",model_name="m",tp_rank="0"} 3.0
sglang:num_running_reqs{engine_type="decode",model_name="m",tp_rank="1"} 3.0
sglang:num_queue_reqs{model_name="m"} 2.0
sglang:token_usage{model_name="m"} 0.5
sglang:max_total_num_tokens{model_name="m"} 1000.0
sglang:num_transfer_failed_reqs_total{model_name="m"} 6.0
"#;
        let expected = EngineReading {
            running: Some(3.0),
            waiting: Some(2.0),
            kv_usage: Some(0.5),
            kv_capacity: Some(Tokens(1000)),
            failed_transfers: Some(6.0),
            ..EngineReading::default()
        };
        assert_eq!(EngineReading::of_metrics(page), expected);
    }

    #[test]
    fn cache_hits_are_counted_once_under_either_name() {
        let older = br#"vllm:prefix_cache_hits_total{engine="0"} 48.0"#;
        assert_eq!(EngineReading::of_metrics(older).hits, Some(48.0));
        let both = br#"
vllm:prefix_cache_hits_total{engine="0"} 48.0
vllm:prompt_tokens_by_source_total{engine="0",source="local_cache_hit"} 50.0
"#;
        assert_eq!(EngineReading::of_metrics(both).hits, Some(50.0));
    }

    #[test]
    fn an_unknown_page_yields_no_values() {
        assert!(EngineReading::of_metrics(b"process_open_fds 34.0\nvllm:unknown 1\n").is_empty());
        assert!(EngineReading::of_metrics(b"<html>404</html>").is_empty());
    }
}
