//! `[probe]` and `[outlier_ejection]`: when a backend gets no new work, and how it comes back.

use serde::Deserialize;
use tidegate_terms::Seconds;

use crate::defaults;

/// `[probe]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeSettings {
    /// Between two probes of one backend.
    #[serde(rename = "interval_seconds")]
    pub interval: Seconds,
    /// For one answer.
    #[serde(rename = "timeout_seconds")]
    pub timeout: Seconds,
    /// Failed probes in a row that take a backend out.
    pub failures_to_eject: u32,
    /// How long the share of a backend that came back grows.
    #[serde(rename = "slow_return_seconds")]
    pub slow_return: Seconds,
    /// Is an engine that contradicts the settings a reason not to start?
    pub strict_start: bool,
}

/// `[outlier_ejection]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EjectionSettings {
    /// Over how long a backend's failures are counted.
    #[serde(rename = "window_seconds")]
    pub window: Seconds,
    /// Requests in the window below which nothing is concluded.
    pub requests_min: u32,
    /// Share of failures that the engine caused from which it is ejected, 0 to 1.
    pub failure_share: f64,
    /// How long it is ejected, times how often it was.
    #[serde(rename = "ejection_seconds")]
    pub ejection: Seconds,
    /// The longest ejection.
    #[serde(rename = "ejection_max_seconds")]
    pub ejection_max: Seconds,
    /// Largest share of a pool that may be ejected at once, 0 to 1; never its last usable backend.
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
