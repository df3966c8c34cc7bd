//! `[probe]` and `[outlier_ejection]`: health probes, ejection and slow start.

use serde::{Deserialize, Serialize};
use tidegate_types::Seconds;

use crate::defaults;

/// `[probe]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeSettings {
    /// Interval of the probes of one backend.
    #[serde(rename = "interval_seconds")]
    pub interval: Seconds,
    /// Time-out of a probe.
    #[serde(rename = "timeout_seconds")]
    pub timeout: Seconds,
    /// Consecutive failed probes after which a backend is ejected.
    pub failures_to_eject: u32,
    /// Slow start: time over which a returning backend's share of the load grows to normal.
    #[serde(rename = "slow_return_seconds")]
    pub slow_return: Seconds,
    /// Whether an engine whose reports contradict the settings prevents the start; false: its backend is
    /// unusable.
    pub strict_start: bool,
    /// Trial hand-offs: when a backend starts, joins or returns, one prompt of about 30 tokens is handed off
    /// in each direction between it and up to three peers of its group. A pair that fails gets no hand-off.
    pub trial_handoffs: bool,
    /// Prompts of models without a tokenizer: at most one a second, and 16 of a model, are counted by
    /// `/tokenize` of a vLLM or SGLang engine that serves the model, beside the requests. The counts correct
    /// the estimate.
    pub calibrate_estimates: bool,
}

/// `[outlier_ejection]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EjectionSettings {
    /// Window over which a backend's failures are counted.
    #[serde(rename = "window_seconds")]
    pub window: Seconds,
    /// Fewest requests in the window for an ejection.
    pub requests_min: u32,
    /// Share of requests failed by the engine at which its backend is ejected, 0 to 1.
    pub failure_share: f64,
    /// First ejection time; multiplied by the number of recent ejections. A probe ends it.
    #[serde(rename = "ejection_seconds")]
    pub ejection: Seconds,
    /// Longest ejection time.
    #[serde(rename = "ejection_max_seconds")]
    pub ejection_max: Seconds,
    /// Largest share of a pool that may be ejected at once, 0 to 1. The last usable backend is never
    /// ejected.
    pub pool_share_max: f64,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        ProbeSettings {
            interval: defaults::PROBE_INTERVAL,
            timeout: defaults::PROBE_TIMEOUT,
            failures_to_eject: defaults::FAILURES_TO_EJECT,
            slow_return: defaults::SLOW_RETURN,
            strict_start: false,
            trial_handoffs: false,
            calibrate_estimates: true,
        }
    }
}

impl Default for EjectionSettings {
    fn default() -> Self {
        EjectionSettings {
            window: defaults::EJECTION_WINDOW,
            requests_min: defaults::EJECTION_REQUESTS_MIN,
            failure_share: defaults::EJECTION_FAILURE_SHARE,
            ejection: defaults::EJECTION,
            ejection_max: defaults::EJECTION_MAX,
            pool_share_max: defaults::EJECTION_POOL_SHARE,
        }
    }
}
