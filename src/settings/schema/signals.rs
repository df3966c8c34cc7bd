//! `[signals]`: metrics of engines and readings of GPUs.

use serde::{Deserialize, Serialize};
use tidegate_types::Seconds;

use crate::defaults;

/// `[signals]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignalSettings {
    /// Interval of scraping the engines' `/metrics`; 0: never.
    #[serde(rename = "scrape_seconds")]
    pub scrape: Seconds,
    /// Interval of reading the GPUs of this machine (NVML); 0: never.
    #[serde(rename = "gpu_seconds")]
    pub gpu: Seconds,
    /// Request token counts in every chunk from vLLM (`continuous_usage_stats`); they are removed for
    /// clients that did not request them.
    pub exact_counts: bool,
}

impl Default for SignalSettings {
    fn default() -> Self {
        SignalSettings { scrape: defaults::SCRAPE, gpu: defaults::GPU, exact_counts: false }
    }
}
