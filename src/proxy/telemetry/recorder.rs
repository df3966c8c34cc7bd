//! The Prometheus recorder with the buckets of every histogram.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};

/// Buckets of TTFT and request durations in seconds: vLLM's TTFT buckets, up to ten minutes.
const LONG_BUCKETS: [f64; 18] = [
    0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    160.0, 640.0,
];
/// Buckets of TPOT and of the largest gap of an answer in seconds.
const TOKEN_BUCKETS: [f64; 13] =
    [0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0];
/// Buckets of planning durations in seconds.
const PLAN_BUCKETS: [f64; 8] = [1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 1e-2];
/// Buckets of reaction times in seconds.
const REACTION_BUCKETS: [f64; 15] =
    [5e-4, 1e-3, 1.5e-3, 2e-3, 2.5e-3, 3e-3, 4e-3, 5e-3, 6e-3, 8e-3, 1e-2, 1.5e-2, 2e-2, 5e-2, 0.1];
/// Buckets of tokens per request.
const TOKENS_BUCKETS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    2048.0,
    4096.0,
    8192.0,
    16384.0,
    32768.0,
    65536.0,
    262_144.0,
    1_048_576.0,
];
/// Buckets of observed divided by predicted values.
const RATIO_BUCKETS: [f64; 10] = [0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 2.0, 4.0, 10.0];
/// Buckets of prediction errors as a share of the prompt; negative: predicted too low.
const SHARE_BUCKETS: [f64; 12] =
    [-0.9, -0.5, -0.25, -0.1, -0.05, -0.01, 0.01, 0.05, 0.1, 0.25, 0.5, 0.9];

/// Returns an empty recorder.
///
/// # Errors
/// [`BuildError`] if a bucket list is empty.
pub fn new() -> Result<PrometheusRecorder, BuildError> {
    let suffix = |name: &str| Matcher::Suffix(name.to_owned());
    let full = |name: &str| Matcher::Full(name.to_owned());
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(suffix("_seconds"), &LONG_BUCKETS)?
        .set_buckets_for_metric(
            full("gen_ai_server_time_per_output_token_seconds"),
            &TOKEN_BUCKETS,
        )?
        .set_buckets_for_metric(full("tidegate_largest_gap_seconds"), &TOKEN_BUCKETS)?
        .set_buckets_for_metric(full("tidegate_plan_duration_seconds"), &PLAN_BUCKETS)?
        .set_buckets_for_metric(
            Matcher::Prefix("tidegate_reaction_".to_owned()),
            &REACTION_BUCKETS,
        )?
        .set_buckets_for_metric(full("gen_ai_client_token_usage"), &TOKENS_BUCKETS)?
        .set_buckets_for_metric(full("tidegate_ttft_observed_over_predicted"), &RATIO_BUCKETS)?
        .set_buckets_for_metric(full("tidegate_prefix_hit_rate_error"), &SHARE_BUCKETS)?;
    Ok(builder.build_recorder())
}
