//! Service-level objectives.

use crate::Seconds;
use serde::{Deserialize, Serialize};

/// The targets of a request; it counts as attained if it meets all of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// Time from arrival at the proxy to the first token.
    pub ttft: Seconds,
    /// Mean time per output token after the first.
    pub tpot: Seconds,
    /// Largest gap between two tokens (ITL); `None`: no target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub itl: Option<Seconds>,
}

impl Slo {
    /// Returns whether an answer with this largest gap meets the ITL target. An answer without a gap
    /// does. The largest gap counts, not a percentile: a pause is what a reader notices, and a 99th
    /// percentile would allow a number of pauses that grows with the length of the answer.
    pub fn meets_itl(&self, gap_max: Option<Seconds>) -> bool {
        self.itl.is_none_or(|itl| gap_max.is_none_or(|gap| gap <= itl))
    }
}

impl Default for Slo {
    /// 1 s, 30 ms and no ITL target: the targets of the reference table in
    /// docs/spec/engine-model.md#reference-results.
    fn default() -> Slo {
        Slo { ttft: Seconds(1.0), tpot: Seconds(0.030), itl: None }
    }
}
