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
    /// `x-llm-d-inference-objective` (or their earlier names) are read; `["0.0.0.0/0", "::/0"]`: all peers.
    /// From other peers these headers have no effect.
    pub trusted_peers: Vec<String>,
    /// Service classes: groups of requests with separate targets. A request belongs to the first class that
    /// it matches; without a match the targets of `[slo]` apply.
    pub classes: Vec<SloClassSettings>,
}

/// `[[slo.classes]]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SloClassSettings {
    /// Name of the class and value of the metric label `class`. `default` is reserved for requests without
    /// a class.
    pub name: String,
    /// Condition: the model is one of these; empty: any. A request must meet all conditions of the class.
    pub models: Vec<String>,
    /// Condition: the API key is one of these, by their names in `[[auth.keys]]`; empty: any.
    pub keys: Vec<String>,
    /// Condition: `x-llm-d-inference-objective` of a trusted peer is one of these; empty: any, or none.
    pub objectives: Vec<String>,
    /// Condition: a header of a trusted peer sets a target.
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
    /// Batch work: it has no targets, is queued behind all other requests, and is not counted as demand by
    /// the planner.
    pub batch: bool,
    /// Queue deadline of batch work; absent: none, it waits until its client disconnects.
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
