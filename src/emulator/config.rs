//! What is emulated.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tidegate_sim::Profile;
use tidegate_terms::Seconds;

/// Which engine's manners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// vLLM with NixlConnector, `kv_role=kv_both`.
    Vllm,
    /// The same API without a connector: hand-off parameters are ignored.
    Plain,
}

/// What a decode engine does when the KV does not come: vLLM's `kv_load_failure_policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFailurePolicy {
    /// End the request with an error: vLLM's default.
    Fail,
    /// Prefill here, silently.
    Recompute,
}

/// A fleet of emulated engines in one process.
#[derive(Clone, Debug)]
pub struct EmulatorConfig {
    /// The first engine's address; the others take the ports after it. Port 0 is any free port for
    /// each.
    pub listen: SocketAddr,
    /// How many engines.
    pub count: u16,
    /// Their physics.
    pub profile: Profile,
    /// The model they serve.
    pub model: String,
    /// Its context length.
    pub max_model_len: u64,
    /// Their manners.
    pub kind: EngineKind,
    /// When the KV does not come.
    pub policy: LoadFailurePolicy,
    /// How long a prefill's KV waits to be read.
    pub lease: Seconds,
}

impl Default for EmulatorConfig {
    fn default() -> EmulatorConfig {
        EmulatorConfig {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            count: 1,
            profile: Profile::default(),
            model: "emulated".to_owned(),
            max_model_len: 131_072,
            kind: EngineKind::Vllm,
            policy: LoadFailurePolicy::Fail,
            lease: Seconds(30.0),
        }
    }
}
