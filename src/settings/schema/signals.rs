//! `[signals]`: what engines and GPUs tell beside their answers.

use serde::Deserialize;
use tidegate_terms::Seconds;

use crate::defaults;

/// `[signals]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignalSettings {
    /// Between two looks at an engine's /metrics; 0 is never.
    #[serde(rename = "scrape_seconds")]
    pub scrape: Seconds,
    /// Between two looks at the GPUs of this machine; 0 is never.
    #[serde(rename = "gpu_seconds")]
    pub gpu: Seconds,
    /// Ask vLLM to count every chunk's tokens?
    pub exact_counts: bool,
}

impl Default for SignalSettings {
    fn default() -> Self {
        SignalSettings { scrape: defaults::SCRAPE, gpu: defaults::GPU, exact_counts: false }
    }
}
