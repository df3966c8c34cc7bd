//! `[slo]` and `[[slo.classes]]`: latency targets.

use serde::{Deserialize, Serialize};
use tidegate_types::Seconds;

use crate::defaults;

/// `[slo]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SloSettings {
    /// Target for the time to first token.
    #[serde(rename = "ttft_seconds")]
    pub ttft: Seconds,
    /// Target for the mean time per output token after the first.
    #[serde(rename = "tpot_seconds")]
    pub tpot: Seconds,
    /// Target for the largest gap between two tokens of an answer (ITL); 0: none.
    #[serde(rename = "itl_seconds")]
    pub itl: Seconds,
    /// Networks and addresses of the peers whose headers `x-llm-d-slo-ttft-ms`, `x-llm-d-slo-tpot-ms` and
    /// `x-llm-d-inference-objective` (or their earlier names) are read; `["0.0.0.0/0", "::/0"]`: of all
    /// clients. From other peers these headers have no effect.
    pub trusted_peers: Vec<String>,
    /// Service classes: requests with targets of their own. A request is of the first class that it
    /// matches; without a match the targets of `[slo]` apply.
    pub classes: Vec<SloClassSettings>,
}

/// `[[slo.classes]]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SloClassSettings {
    /// Name of the class: the label `class` of metrics. `default` is the name of requests without a class.
    pub name: String,
    /// Requests for one of these models; empty: for any. A request must meet every condition given.
    pub models: Vec<String>,
    /// Requests with one of these keys, by their names in `[[auth.keys]]`; empty: with any.
    pub keys: Vec<String>,
    /// Requests for which a trusted peer names one of these objectives in `x-llm-d-inference-objective`;
    /// empty: with any, or without one.
    pub objectives: Vec<String>,
    /// Requests for which a trusted peer states a target in a header.
    pub stated_targets: bool,
    /// Target for the time to first token; absent: that of `[slo]`.
    #[serde(rename = "ttft_seconds")]
    pub ttft: Option<Seconds>,
    /// Target for the mean time per output token after the first; absent: that of `[slo]`.
    #[serde(rename = "tpot_seconds")]
    pub tpot: Option<Seconds>,
    /// Target for the largest gap between two tokens of an answer; 0: none; absent: that of `[slo]`.
    #[serde(rename = "itl_seconds")]
    pub itl: Option<Seconds>,
    /// Batch work: without targets, queued behind all other requests, and no demand for the planner.
    pub batch: bool,
    /// Queue deadline of batch work; absent: it waits until its client leaves.
    #[serde(rename = "queue_deadline_seconds")]
    pub queue_deadline: Option<Seconds>,
}

impl Default for SloSettings {
    fn default() -> Self {
        SloSettings {
            ttft: defaults::TTFT,
            tpot: defaults::TPOT,
            itl: defaults::ITL,
            trusted_peers: Vec::new(),
            classes: Vec::new(),
        }
    }
}
