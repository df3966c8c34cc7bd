//! Names and help texts of all Prometheus metrics. `docs/generate` reads this file.

use metrics::{describe_counter as counter, describe_gauge as gauge, describe_histogram as hist};

/// Describes every metric to the current recorder.
pub(crate) fn describe() {
    requests();
    backends();
    engines();
    gpus();
    settings();
    spans();
}

/// Describes the export of spans.
fn spans() {
    counter!("tidegate_spans_exported_total", "Spans that the OTLP collector has taken");
    counter!(
        "tidegate_spans_dropped_total",
        "Spans that were not exported, by reason (queue_full, refused, unreachable)"
    );
}

/// Describes the settings in force.
fn settings() {
    gauge!("tidegate_config_revision", "Number of the settings in force, 1 at the start");
    gauge!(
        "tidegate_config_last_reload_success",
        "1 if the last reload succeeded, or none was tried"
    );
    gauge!(
        "tidegate_config_last_reload_timestamp_seconds",
        "Unix time of the last reload, or of the start"
    );
}

/// Describes the requests and their legs.
fn requests() {
    counter!(
        "tidegate_connections_refused_total",
        "Client connections above a limit, by limit (total, address)"
    );
    hist!("gen_ai_server_time_to_first_token_seconds", "Time from arrival to the first token");
    hist!(
        "gen_ai_server_time_per_output_token_seconds",
        "Mean time per output token after the first, per request"
    );
    hist!(
        "tidegate_largest_gap_seconds",
        "Largest gap between two chunks of an answer (ITL), per request"
    );
    hist!("gen_ai_server_request_duration_seconds", "Time from arrival to the end of the answer");
    hist!("gen_ai_client_token_usage", "Tokens of a request, by type");
    counter!(
        "tidegate_slo_requests_total",
        "Ended requests that count for attainment, by service class; absent for batch work"
    );
    counter!(
        "tidegate_slo_attained_total",
        "Those that met a target of their class (ttft, tpot, itl), or all; without an ITL target every finished one meets it"
    );
    gauge!("tidegate_queue_requests", "Requests in the queue");
    gauge!(
        "tidegate_engines_wanted",
        "Fewest engines of a compatibility group that would have lost no request over the last 2.5 to 5 minutes"
    );
    gauge!("tidegate_body_held_bytes", "Bytes of request bodies held");
    gauge!("tidegate_body_budget_bytes", "Most bytes of request bodies held at once");
    gauge!("tidegate_live_requests", "Requests in flight, from arrival to completion");
    hist!(
        "tidegate_queue_seconds",
        "Time in the EDF queue, from arrival to the placement of the first leg"
    );
    hist!(
        "tidegate_ttft_observed_over_predicted",
        "Observed TTFT divided by predicted TTFT; 1 is exact"
    );
    counter!("tidegate_leg_failures_total", "Legs that failed before their first byte");
    counter!("tidegate_refused_requests_total", "Requests refused by the proxy itself");
    counter!("tidegate_requests_started_total", "Requests admitted by the filters");
    counter!("tidegate_requests_settled_total", "Completed requests, by outcome");
}

/// Describes the backends, the planner and the prefix index.
fn backends() {
    gauge!("tidegate_backend_role", "1 for the role a backend has, 0 for the others");
    gauge!("tidegate_backend_usable", "1 if the backend may receive new work");
    gauge!(
        "tidegate_prefix_hit_share",
        "Share of predicted prefix-cache hits that is real, 0 to 1"
    );
    gauge!("tidegate_backend_prefill_seconds", "Predicted prefill work in flight");
    gauge!(
        "tidegate_backend_prefill_tokens",
        "Uncached prompt tokens of the prefill work in flight"
    );
    gauge!("tidegate_backend_streams", "Decode streams in flight");
    gauge!("tidegate_backend_kv_tokens", "KV tokens of the decode streams in flight");
    gauge!(
        "tidegate_backend_misfit",
        "1 for each kind of difference between an engine and the settings or its group"
    );
    hist!("tidegate_plan_duration_seconds", "Duration of one planner run");
    hist!(
        "tidegate_reaction_to_table_seconds",
        "Time from the first unplanned arrival to the routing table that reassigns engines for it"
    );
    hist!(
        "tidegate_reaction_to_placement_seconds",
        "Time from the first unplanned arrival to the first leg placed with that table, excluding time without free capacity"
    );
    hist!("tidegate_prefix_hit_rate_error", "(Predicted - reported cached tokens) / prompt tokens");
    counter!(
        "tidegate_prefix_prompt_tokens_total",
        "Prompt tokens of requests whose engine reported cached tokens"
    );
    counter!(
        "tidegate_prefix_predicted_tokens_total",
        "Prompt tokens of such requests that were predicted to be cached"
    );
    counter!(
        "tidegate_prefix_cached_tokens_total",
        "Prompt tokens of such requests that were reported as cached"
    );
    counter!("tidegate_role_flips_total", "Role changes, by cause and result");
    gauge!(
        "tidegate_leader",
        "1 if this gateway plans for all; absent without `[gateways.kubernetes]` and `gateways.peers`"
    );
    gauge!("tidegate_leader_epoch", "Fencing epoch in which this gateway led last");
    gauge!(
        "tidegate_other_gateways",
        "Other gateways whose loads placement and planner count; absent without `gateways.listen`"
    );
    counter!(
        "tidegate_gateway_reports_refused_total",
        "Reported loads of other gateways that were refused because a number in them is not possible"
    );
    counter!(
        "tidegate_handoff_trials_total",
        "Trial hand-offs, by result (works, fails, unknown); absent without `probe.trial_handoffs`"
    );
    counter!(
        "tidegate_role_labels_total",
        "Roles written as labels of pods, by result (written, refused, failed)"
    );
}

/// Describes the engine readings and KV events.
fn engines() {
    counter!("tidegate_kv_event_blocks_total", "Blocks in an engine's KV events, by outcome");
    counter!("tidegate_kv_event_messages_lost_total", "KV event messages lost and not replayed");
    gauge!("tidegate_kv_event_blocks", "Blocks that an engine holds according to its KV events");
    gauge!(
        "tidegate_kv_events_complete",
        "1 if an engine's prefix cache is known completely from its KV events"
    );
    gauge!("tidegate_engine_kv_usage_ratio", "Used share of KV memory, as the engine reports it");
    gauge!("tidegate_engine_kv_capacity_tokens", "KV capacity in tokens, as the engine reports it");
    gauge!("tidegate_engine_running_requests", "Running requests, as the engine reports them");
    gauge!("tidegate_engine_waiting_requests", "Requests waiting inside the engine");
    gauge!(
        "tidegate_engine_deferred_requests",
        "Requests inside the engine waiting for KV transfer"
    );
    counter!("tidegate_engine_preemptions_total", "Preemptions, as the engine reports them");
    counter!(
        "tidegate_engine_failed_transfers_total",
        "Failed KV transfers, as the engine reports them"
    );
    counter!(
        "tidegate_engine_expired_handoffs_total",
        "Prefills whose KV was not fetched within the lease"
    );
    counter!(
        "tidegate_engine_transferred_tokens_total",
        "Prompt tokens whose KV came from another engine"
    );
    counter!(
        "tidegate_engine_cached_tokens_total",
        "Prompt tokens found in the engine's prefix cache"
    );
    counter!("tidegate_engine_computed_tokens_total", "Prompt tokens that the engine computed");
    gauge!("tidegate_engine_prefill_tokens_per_second", "Prefill rate as the engine reports it");
    gauge!("tidegate_engine_alert", "1 for each active engine alert");
}

/// Describes the GPU readings.
fn gpus() {
    gauge!("tidegate_gpu_utilisation_ratio", "Share of time in which a kernel ran");
    gauge!("tidegate_gpu_memory_used_bytes", "GPU memory in use");
    gauge!("tidegate_gpu_memory_bytes", "Total GPU memory");
    gauge!("tidegate_gpu_power_watts", "Power drawn");
    gauge!("tidegate_gpu_power_limit_watts", "Power limit");
    gauge!("tidegate_gpu_clock_mhz", "Clock of the streaming multiprocessors");
    gauge!("tidegate_gpu_memory_clock_mhz", "Clock of the GPU's memory");
    gauge!("tidegate_gpu_temperature_celsius", "Temperature");
    gauge!("tidegate_gpu_throttled", "1 for each active reason of throttling");
    gauge!("tidegate_gpu_ecc_errors", "Memory errors since the driver was loaded");
    gauge!("tidegate_gpu_fault", "1 if a fault of the GPU takes its backends out of service");
    counter!("tidegate_gpu_xid_errors_total", "Xid errors reported by the driver");
}
