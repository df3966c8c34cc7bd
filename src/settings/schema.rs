//! The sections and their keys. Keys end in their unit. Every key has a default; required keys (a
//! backend's name and address) are checked by `validate`.

mod fleet;
mod gateways;
mod health;
mod kubernetes;
mod server;
mod sidecar;
mod signals;
mod slo;
mod sources;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use tidegate_types::{Seconds, Tokens};

use crate::defaults;

pub use fleet::{
    BackendSettings, Connector, EngineName, KvRole, ModelSettings, ScheduleStyle, Secret,
};
pub use gateways::{GatewaySettings, LeaseSettings};
pub use health::{EjectionSettings, ProbeSettings};
pub use kubernetes::{KubernetesSettings, PodSettings, Preset, RoleLabelSettings};
pub use server::{ClientAuth, CorsSettings, HalfClose, ServerSettings, TlsSettings};
pub use sidecar::SidecarSettings;
pub use signals::SignalSettings;
pub use slo::{SloClassSettings, SloSettings};
pub use sources::{DirectorySettings, DnsSettings};

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The data port, for clients.
    pub server: ServerSettings,
    /// The admin port: metrics, probes, fleet, plan, role changes. It must not be reachable by clients.
    pub admin: AdminSettings,
    /// Latency targets. Placement and roles follow from these two numbers.
    pub slo: SloSettings,
    /// EDF queue: requests wait in tidegate until an engine has capacity.
    pub queue: QueueSettings,
    /// Choice of a backend for each request.
    pub placement: PlacementSettings,
    /// Role changes between prefill and decode.
    pub planner: PlannerSettings,
    /// Retries before the first byte.
    pub retry: RetrySettings,
    /// Connections to engines.
    pub upstream: UpstreamSettings,
    /// Client authentication.
    pub auth: AuthSettings,
    /// Log and access log.
    pub log: LogSettings,
    /// Health probes of the engines, and the start-up check.
    pub probe: ProbeSettings,
    /// Outlier ejection: a backend whose engine fails too many requests receives no new ones for a while.
    pub outlier_ejection: EjectionSettings,
    /// Prefix index: which backend holds which prompt prefix.
    pub prefix: PrefixSettings,
    /// Readings of engines and GPUs beside the answers.
    pub signals: SignalSettings,
    /// Sidecar mode: tidegate in an engine's pod in place of llm-d's pd-sidecar; absent: headers that
    /// name engines are ignored.
    pub sidecar: Option<SidecarSettings>,
    /// API server of Kubernetes.
    pub kubernetes: KubernetesSettings,
    /// Several gateways of one fleet: one of them, the leader, plans.
    pub gateways: GatewaySettings,
    /// Models: tokenizer, chat template, context length.
    pub models: Vec<ModelSettings>,
    /// The engines.
    pub backends: Vec<BackendSettings>,
    /// Entries of `[[backends]]` that describe discovered backends; [`Settings::parse`] moves them here.
    #[serde(skip)]
    pub sources: Vec<BackendSettings>,
    /// The file from which the settings were read. It is read again on SIGHUP and when it changes.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// FNV-1a hash of the text from which the settings were parsed; 0 without one.
    #[serde(skip)]
    pub text_hash: u64,
    /// Names of settings given on the command line; a reload does not change them.
    #[serde(skip)]
    pub on_command_line: Vec<&'static str>,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// Address of the admin port.
    pub listen: SocketAddr,
    /// File in which roles set by an operator are kept across restarts; absent: they are not kept.
    pub state_file: Option<PathBuf>,
    /// Values of `Host`, without a port, that are accepted besides the listening address and loopback
    /// names. Others are refused as protection against DNS rebinding.
    pub hosts: Vec<String>,
    /// Bearer token for every admin path but `/livez` and `/readyz`; at least 16 bytes.
    pub token: Option<Secret>,
    /// File that holds a token. With `token` set too, either is accepted, for rotation.
    pub token_file: Option<PathBuf>,
    /// Terminate TLS on the admin address.
    pub tls: Option<TlsSettings>,
    /// Time for which a role set by `tidegate flip` holds before the planner may change it.
    #[serde(rename = "flip_hold_seconds")]
    pub flip_hold: Seconds,
    /// Number of ended requests kept for `tidegate explain` and `GET /v1/requests`; 0: none.
    pub requests_kept: usize,
}

/// `[queue]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// Most waiting requests; further ones get 429.
    pub requests_max: usize,
    /// Longest wait in the queue; then the request gets 504.
    #[serde(rename = "deadline_seconds")]
    pub deadline: Seconds,
    /// Prefill backlog bound: predicted prefill work that may be in flight on an engine before the
    /// next request is sent to it; about one chunk.
    #[serde(rename = "prefill_backlog_max_seconds", alias = "room_seconds")]
    pub prefill_backlog_max: Seconds,
    /// Handling of queued requests that can no longer meet their TTFT target. Retries, and prompts that
    /// would miss the target even on an idle fleet, are always served.
    pub late: LateRequests,
    /// Late class: share of the placed prefill work that goes to requests that can no longer meet their
    /// TTFT target, 0 to 1.
    #[serde(alias = "hopeless_share")]
    pub late_class_share: f64,
    /// Trunk reservation: a request of the late class does not take the last idle prefill backend until
    /// it has waited for this share of `deadline_seconds`, 0 to 1.
    #[serde(alias = "hopeless_patience")]
    pub trunk_reservation_share: f64,
    /// Hand-off deadline: longest time between the end of a prefill and the start of its decode leg;
    /// below the engines' lease.
    #[serde(rename = "handoff_seconds")]
    pub handoff: Seconds,
}

/// `late`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LateRequests {
    /// They move to the late class.
    #[default]
    Serve,
    /// They are refused with 429 (load shedding).
    Refuse,
}

/// `[placement]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementSettings {
    /// Spill: decode backends whose streams have slack run short requests colocated.
    pub spill: bool,
    /// The engines' `max_num_batched_tokens`; if unknown, choose a larger value.
    #[serde(rename = "chunk_tokens")]
    pub chunk: Tokens,
    /// Prompts with fewer uncached tokens are never disaggregated.
    #[serde(rename = "colocate_below_tokens", alias = "whole_below_tokens")]
    pub colocate_below: Tokens,
}

/// `[planner]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlannerSettings {
    /// Automatic role changes; false: only operators change roles.
    pub enabled: bool,
    /// Plan interval without events; a burst triggers a plan at once.
    #[serde(rename = "interval_seconds")]
    pub interval: Seconds,
    /// Deprecated, without effect: the switching cost bounds the flips.
    #[serde(rename = "dwell_seconds")]
    pub dwell: Option<Seconds>,
    /// Averaging time of measured demand; absent: 10 s.
    #[serde(rename = "demand_window_seconds")]
    pub demand_window: Option<Seconds>,
    /// Duration of an engine's own role switch once it is idle (SGLang); absent: 5 s.
    #[serde(rename = "switch_seconds")]
    pub switch: Option<Seconds>,
    /// File that records every input and decision of the planner, for replay; 100 KB/s and more.
    pub record: Option<PathBuf>,
}

/// `[retry]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrySettings {
    /// Most backends tried before the first byte, including the first. Unreachable backends and
    /// refusals for overload do not count.
    pub attempts: u32,
    /// Hedging: a request without an answer after this time, and after four times its predicted time, is
    /// also sent to a second backend; 0: never.
    #[serde(rename = "hedge_seconds")]
    pub hedge: Seconds,
}

/// `[upstream]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamSettings {
    /// Time-out for opening a connection.
    #[serde(rename = "connect_timeout_seconds")]
    pub connect_timeout: Seconds,
    /// Idle time after which a connection is closed; below the engines' own.
    #[serde(rename = "idle_seconds")]
    pub idle: Seconds,
    /// Time-out for the head of an answer.
    #[serde(rename = "first_byte_timeout_seconds")]
    pub first_byte_timeout: Seconds,
    /// Silence after which a stream is cut; 0: it is cut only when its engine is found dead.
    #[serde(rename = "silence_seconds")]
    pub silence: Seconds,
    /// Most idle connections per backend.
    pub idle_per_backend_max: usize,
    /// Certificate authorities for https backends, PEM; no other authority is trusted.
    pub ca_file: Option<PathBuf>,
    /// Certificate chain that tidegate presents to https backends, PEM; with `client_key`.
    pub client_cert: Option<PathBuf>,
    /// Private key of `client_cert`, PEM.
    pub client_key: Option<PathBuf>,
}

/// `[auth]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthSettings {
    /// API keys of clients; empty: every client is admitted.
    pub keys: Vec<KeySettings>,
    /// Whether the client's key is forwarded to the engines. A gateway without keys always forwards
    /// `Authorization`.
    pub forward_authorization: bool,
}

/// `[[auth.keys]]`
#[derive(Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeySettings {
    /// Name of the key's holder; shown in logs as `tenant`.
    pub name: String,
    /// The key itself.
    #[serde(serialize_with = "fleet::redacted")]
    pub key: Option<String>,
    /// File that holds the key.
    pub key_file: Option<PathBuf>,
}

impl fmt::Debug for KeySettings {
    /// Without the key: settings end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.as_ref().map(|_| "…");
        f.debug_struct("KeySettings")
            .field("name", &self.name)
            .field("key", &key)
            .field("key_file", &self.key_file)
            .finish()
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// `error`, `warn`, `info`, `debug`, or tracing's directives.
    pub level: String,
    /// Format of log lines.
    pub format: LogFormat,
    /// Destination of the access log.
    pub access: AccessLog,
}

/// `format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// Readable text.
    Text,
}

/// `access`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
    /// No access log.
    Off,
}

/// `[prefix]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixSettings {
    /// Blocks in the index, 64 bytes each; a power of two.
    pub lines: usize,
    /// Tokens per block.
    pub block_tokens: usize,
}

impl Default for AdminSettings {
    fn default() -> Self {
        AdminSettings {
            listen: defaults::ADMIN_LISTEN,
            state_file: None,
            hosts: Vec::new(),
            token: None,
            token_file: None,
            tls: None,
            flip_hold: defaults::FLIP_HOLD,
            requests_kept: defaults::REQUESTS_KEPT,
        }
    }
}

impl Default for QueueSettings {
    fn default() -> Self {
        QueueSettings {
            requests_max: defaults::QUEUE_REQUESTS_MAX,
            deadline: defaults::QUEUE_DEADLINE,
            prefill_backlog_max: defaults::PREFILL_BACKLOG_MAX,
            late: LateRequests::default(),
            late_class_share: defaults::LATE_CLASS_SHARE,
            trunk_reservation_share: defaults::TRUNK_RESERVATION_SHARE,
            handoff: defaults::HANDOFF,
        }
    }
}

impl Default for PlacementSettings {
    fn default() -> Self {
        PlacementSettings {
            spill: true,
            chunk: defaults::CHUNK,
            colocate_below: defaults::COLOCATE_BELOW,
        }
    }
}

impl Default for PlannerSettings {
    fn default() -> Self {
        PlannerSettings {
            enabled: true,
            interval: defaults::PLAN_INTERVAL,
            dwell: None,
            demand_window: None,
            switch: None,
            record: None,
        }
    }
}

impl Default for RetrySettings {
    fn default() -> Self {
        RetrySettings { attempts: defaults::ATTEMPTS, hedge: defaults::HEDGE }
    }
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        UpstreamSettings {
            connect_timeout: defaults::CONNECT_TIMEOUT,
            idle: defaults::IDLE,
            first_byte_timeout: defaults::FIRST_BYTE_TIMEOUT,
            silence: defaults::SILENCE,
            idle_per_backend_max: defaults::IDLE_PER_BACKEND_MAX,
            ca_file: None,
            client_cert: None,
            client_key: None,
        }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        LogSettings {
            level: "info".to_owned(),
            format: LogFormat::default(),
            access: AccessLog::default(),
        }
    }
}

impl Default for PrefixSettings {
    fn default() -> Self {
        PrefixSettings {
            lines: defaults::PREFIX_LINES,
            block_tokens: defaults::PREFIX_BLOCK_TOKENS,
        }
    }
}
