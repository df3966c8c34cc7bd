//! Configuration of the emulator: plain values, no I/O.

use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tidegate_sim::Profile;
use tidegate_types::{Seconds, Tokens};

/// Engine whose protocol is emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmulatedEngine {
    /// vLLM with a [`VllmConnector`].
    Vllm,
    /// SGLang, in one of its modes.
    Sglang(SglangMode),
    /// TensorRT-LLM's trtllm-serve with a cache transceiver.
    Trtllm,
    /// vLLM's API without a connector: hand-off parameters are ignored.
    Plain,
}

/// vLLM's `kv_connector`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VllmConnector {
    /// NixlConnector: the decode engine pulls.
    Nixl,
    /// NixlPushConnector: the prefill engine pushes; identical for a proxy.
    NixlPush,
    /// MooncakeConnector; its bootstrap server is at the port that it listens on.
    Mooncake,
    /// OffloadingConnector with the P2P tier; its side channel is at the port that it listens on.
    Offloading,
    /// A store that all engines of this process share.
    SharedStore,
}

impl VllmConnector {
    /// Name in the KV protocol between engines; engines with another name refuse the transfer.
    pub const fn as_str(self) -> &'static str {
        match self {
            VllmConnector::Nixl => "pull",
            VllmConnector::NixlPush => "push",
            VllmConnector::Mooncake => "mooncake",
            VllmConnector::Offloading => "offloading",
            VllmConnector::SharedStore => "shared_store",
        }
    }
}

/// vLLM's `kv_role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VllmKvRole {
    /// Prefill and decode (`kv_both`).
    Both,
    /// Prefill only (`kv_producer`).
    Producer,
    /// Decode only (`kv_consumer`).
    Consumer,
}

/// vLLM's `pd_role`: a role that the engine enforces and can switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PdRole {
    /// Legs with `do_remote_decode`.
    Prefill,
    /// Legs with `do_remote_prefill`.
    Decode,
}

impl PdRole {
    /// vLLM's spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            PdRole::Prefill => "prefill",
            PdRole::Decode => "decode",
        }
    }
}

/// SGLang's `--disaggregation-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SglangMode {
    /// Aggregated: prefill and decode on this engine.
    Null,
    /// Prefill only, for a decode engine that uses the same bootstrap room.
    Prefill,
    /// Decode only, of prompts that another engine prefills.
    Decode,
}

impl SglangMode {
    /// Value of `--disaggregation-mode`.
    pub const fn as_str(self) -> &'static str {
        match self {
            SglangMode::Null => "null",
            SglangMode::Prefill => "prefill",
            SglangMode::Decode => "decode",
        }
    }
}

/// Behaviour of a decode engine when the KV transfer fails: vLLM's `kv_load_failure_policy`.
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
    /// Address of the first engine; the others listen on the following ports. Port 0: each gets a
    /// free port.
    pub listen: SocketAddr,
    /// Number of engines, at least 1.
    pub count: u16,
    /// Engine profile: step times and KV memory.
    pub profile: Profile,
    /// Name of the served model.
    pub model: String,
    /// Context length in tokens: prompt and output together.
    pub max_model_len: u64,
    /// Engine protocol.
    pub kind: EmulatedEngine,
    /// vLLM's connector.
    pub connector: VllmConnector,
    /// vLLM's `kv_role`; a Mooncake engine fails an assertion on a request of the other role.
    pub kv_role: VllmKvRole,
    /// vLLM's `pd_role`; `None`: roles are not enforced, and there is no `/v1/pd_role`.
    pub pd_role: Option<PdRole>,
    /// Longest drain of a role switch, whatever its call allows.
    pub pd_role_drain_max: Seconds,
    /// Role switches fail at their commit.
    pub pd_role_commit_fails: bool,
    /// Data-parallel ranks of a Mooncake vLLM, at least 1: each has an engine id of its own.
    pub ranks: u16,
    /// TensorRT-LLM's internal authentication key: the KV location in a request must be signed with
    /// it.
    pub disagg_key: Option<String>,
    /// Behaviour when the KV transfer fails.
    pub policy: LoadFailurePolicy,
    /// Lease of prefilled KV. While its request is queued, a decode engine extends the lease every
    /// sixth of this time to two thirds of it from then
    /// (docs/spec/engine-protocols.md#vllm-nixl-lease).
    pub lease: Seconds,
    /// Handshake timeout of a decode engine for an unresponsive prefill engine.
    pub handshake_timeout: Seconds,
    /// Tokens of an answer whose request sets no `max_tokens`; it ends with `stop`.
    pub default_output: Tokens,
    /// Idle time after which a connection is closed, as by uvicorn.
    pub keep_alive: Seconds,
    /// Whether the prefix cache is enabled. vLLM enables it by default; here it is off, because the
    /// reference results have no prefix reuse.
    pub prefix_cache: bool,
    /// Whether cached tokens are reported in `usage` (vLLM: `--enable-prompt-tokens-details`).
    pub prompt_tokens_details: bool,
    /// Queue length from which requests are refused with 503 (vLLM: `--max-num-queued-reqs`).
    pub max_queued: Option<u32>,
    /// Host by which other engines reach this one; `None`: the address it listens on.
    pub advertise: Option<String>,
    /// Mean tokens of each stream in a step, 1 to 8: speculative decoding. They leave in one chunk.
    pub bursts: f64,
}

impl Default for EmulatorConfig {
    /// One vLLM on any free port of the loopback, as vLLM itself starts.
    fn default() -> EmulatorConfig {
        EmulatorConfig {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            count: 1,
            profile: Profile::default(),
            model: "emulated".to_owned(),
            max_model_len: 131_072,
            kind: EmulatedEngine::Vllm,
            connector: VllmConnector::Nixl,
            kv_role: VllmKvRole::Both,
            pd_role: None,
            pd_role_drain_max: Seconds(3600.0),
            pd_role_commit_fails: false,
            ranks: 1,
            disagg_key: None,
            policy: LoadFailurePolicy::Fail,
            lease: Seconds(30.0),
            handshake_timeout: Seconds(5.0),
            default_output: Tokens(128),
            keep_alive: Seconds(5.0),
            prefix_cache: false,
            prompt_tokens_details: false,
            max_queued: None,
            advertise: None,
            bursts: 1.0,
        }
    }
}
