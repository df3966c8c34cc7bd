//! What a client was promised.

use crate::Seconds;
use serde::{Deserialize, Serialize};

/// The targets that a request must both meet to count as attained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// Time from arrival at the proxy to the first token.
    pub ttft: Seconds,
    /// Mean time per output token after the first.
    pub tpot: Seconds,
}

impl Default for Slo {
    /// 1 s and 30 ms: what the reference table of docs/spec/engine-model.md#reference-results is
    /// judged by.
    fn default() -> Slo {
        Slo { ttft: Seconds(1.0), tpot: Seconds(0.030) }
    }
}
