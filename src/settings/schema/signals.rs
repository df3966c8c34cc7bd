//! `[signals]`: what engines and GPUs tell beside their answers.

use serde::Deserialize;
use tidegate_types::Seconds;

use crate::defaults;

/// `[signals]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignalSettings {
    /// Interval of scraping the engines' `/metrics`; 0: never.
    #[serde(rename = "scrape_seconds")]
    pub scrape: Seconds,
    /// Interval of reading the GPUs of this machine (NVML); 0: never.
    #[serde(rename = "gpu_seconds")]
    pub gpu: Seconds,
    /// Ask vLLM for token counts in every chunk (`continuous_usage_stats`); removed again for clients
    /// that did not ask.
    pub exact_counts: bool,
}

impl Default for SignalSettings {
    fn default() -> Self {
        SignalSettings { scrape: defaults::SCRAPE, gpu: defaults::GPU, exact_counts: false }
    }
}
