//! `[sidecar]`: tidegate in an engine's pod, in place of llm-d's pd-sidecar.

use serde::{Deserialize, Serialize};
use tidegate_types::Seconds;

use crate::defaults;

/// `[sidecar]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SidecarSettings {
    /// Networks and addresses of gateways whose `x-prefiller-host-port` is accepted, for example
    /// `10.0.0.0/8`. Gateway headers of other peers are removed.
    pub trusted_peers: Vec<String>,
    /// Hosts and networks allowed as prefill targets; any if empty and without `inference_pool`.
    pub prefill_hosts: Vec<String>,
    /// InferencePool, as `NAME` or `NAMESPACE/NAME`, whose ready pods are allowed as prefill targets.
    pub inference_pool: Option<String>,
    /// Choose at random among several prefill targets; otherwise the first one.
    pub prefill_sampling: bool,
    /// Further attempts of a prefill after 502, 503, 504 and failed connections.
    pub prefill_retries: u32,
    /// Delay before each further attempt.
    #[serde(rename = "prefill_retry_backoff_seconds")]
    pub prefill_retry_backoff: Seconds,
}

impl Default for SidecarSettings {
    fn default() -> Self {
        SidecarSettings {
            trusted_peers: Vec::new(),
            prefill_hosts: Vec::new(),
            inference_pool: None,
            prefill_sampling: false,
            prefill_retries: 0,
            prefill_retry_backoff: defaults::PREFILL_RETRY_BACKOFF,
        }
    }
}
