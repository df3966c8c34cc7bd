//! Service-level objectives.

use crate::Seconds;
use serde::{Deserialize, Serialize};

/// The targets of a request; it counts as attained if it meets both.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// Time from arrival at the proxy to the first token.
    pub ttft: Seconds,
    /// Mean time per output token after the first.
    pub tpot: Seconds,
}

impl Default for Slo {
    /// 1 s and 30 ms, the targets of the reference table in
    /// docs/spec/engine-model.md#reference-results.
    fn default() -> Slo {
        Slo { ttft: Seconds(1.0), tpot: Seconds(0.030) }
    }
}
