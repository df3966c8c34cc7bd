//! The sections and their keys. Keys end in their unit. Every key has a default, so that a file
//! says only what differs; what must be said (a backend's name and address) is checked afterwards,
//! with the rest.

mod fleet;
mod health;
mod signals;

use serde::Deserialize;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use tidegate_terms::{Seconds, Tokens};

use crate::defaults;

pub use fleet::{
    BackendSettings, Connector, EngineName, KvRole, ModelSettings, ScheduleStyle, Secret,
};
pub use health::{EjectionSettings, ProbeSettings};
pub use signals::SignalSettings;

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The data port.
    pub server: ServerSettings,
    /// The admin port.
    pub admin: AdminSettings,
    /// What clients were promised.
    pub slo: SloSettings,
    /// Waiting for room.
    pub queue: QueueSettings,
    /// Choosing a backend.
    pub placement: PlacementSettings,
    /// Moving roles.
    pub planner: PlannerSettings,
    /// Trying elsewhere.
    pub retry: RetrySettings,
    /// Connections to engines.
    pub upstream: UpstreamSettings,
    /// Who may come in.
    pub auth: AuthSettings,
    /// What is written down.
    pub log: LogSettings,
    /// Asking engines how they are.
    pub probe: ProbeSettings,
    /// Taking engines out that fail what others serve.
    pub outlier_ejection: EjectionSettings,
    /// Remembering which engine holds which prompt.
    pub prefix: PrefixSettings,
    /// What engines and GPUs tell beside their answers.
    pub signals: SignalSettings,
    /// What is known of models.
    pub models: Vec<ModelSettings>,
    /// The engines.
    pub backends: Vec<BackendSettings>,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Threads that serve requests; 0 is one a core.
    pub threads: usize,
    /// Largest request body.
    pub body_max_bytes: usize,
    /// How long a client may take to send its header or its next request, to go on with a body, and
    /// to go on reading its answer.
    #[serde(rename = "keepalive_seconds")]
    pub keepalive: Seconds,
    /// After the linger, how long requests may take to finish.
    #[serde(rename = "drain_seconds")]
    pub drain: Seconds,
    /// After SIGTERM, how long new requests are still served while unready.
    #[serde(rename = "linger_seconds")]
    pub linger: Seconds,
    /// The socket over which a new process gets the listeners on SIGQUIT.
    pub upgrade_socket: Option<PathBuf>,
    /// Terminate TLS.
    pub tls: Option<TlsSettings>,
}

/// `[server.tls]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// Address of metrics, probes and role changes.
    pub listen: SocketAddr,
    /// Where roles set by hand are kept over a restart; nowhere if absent.
    pub state_file: Option<PathBuf>,
}

/// `[slo]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SloSettings {
    /// Time to first token.
    #[serde(rename = "ttft_seconds")]
    pub ttft: Seconds,
    /// Mean time per output token.
    #[serde(rename = "tpot_seconds")]
    pub tpot: Seconds,
}

/// `[queue]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// Most requests that wait; the next one gets 429.
    pub requests_max: usize,
    /// Longest wait; then 504.
    #[serde(rename = "deadline_seconds")]
    pub deadline: Seconds,
    /// Prefill work that may wait inside an engine: about one chunk.
    #[serde(rename = "room_seconds")]
    pub room: Seconds,
    /// Share of placements kept for requests that can no longer meet their TTFT, 0 to 1.
    pub hopeless_share: f64,
    /// Such a request leaves one prefill backend idle for those that can, until it has waited for
    /// this share of the deadline, 0 to 1.
    pub hopeless_patience: f64,
    /// Longest time between a prefill's end and its decode.
    #[serde(rename = "handoff_seconds")]
    pub handoff: Seconds,
}

/// `[placement]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementSettings {
    /// May a decode backend whose streams have slack take a whole short request?
    pub spill: bool,
    /// The engines' `max_num_batched_tokens`; if in doubt rather more.
    #[serde(rename = "chunk_tokens")]
    pub chunk: Tokens,
    /// Prompts with fewer uncached tokens are never split.
    #[serde(rename = "whole_below_tokens")]
    pub whole_below: Tokens,
}

/// `[planner]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlannerSettings {
    /// Does the planner move roles, or only operators?
    pub enabled: bool,
    /// How often it runs when nothing happens.
    #[serde(rename = "interval_seconds")]
    pub interval: Seconds,
    /// Shortest time between two flips of one backend; the planner's default if absent.
    #[serde(rename = "dwell_seconds")]
    pub dwell: Option<Seconds>,
    /// Over how long demand is averaged; the planner's default if absent.
    #[serde(rename = "demand_window_seconds")]
    pub demand_window: Option<Seconds>,
    /// What a role switch takes that an engine makes itself, once it is idle; the planner's default
    /// if absent.
    #[serde(rename = "switch_seconds")]
    pub switch: Option<Seconds>,
    /// A file that gets all that the planner sees and decides.
    pub record: Option<PathBuf>,
}

/// `[retry]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrySettings {
    /// Backends tried before the first byte, the first one included. One that cannot be reached, or
    /// that refuses for load, does not count.
    pub attempts: u32,
}

/// `[upstream]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamSettings {
    /// For opening a connection.
    #[serde(rename = "connect_timeout_seconds")]
    pub connect_timeout: Seconds,
    /// How long a connection waits for its next use.
    #[serde(rename = "idle_seconds")]
    pub idle: Seconds,
    /// For the head of an answer.
    #[serde(rename = "first_byte_timeout_seconds")]
    pub first_byte_timeout: Seconds,
    /// A stream whose engine sends nothing for so long is cut; 0: only if its engine is found dead.
    #[serde(rename = "silence_seconds")]
    pub silence: Seconds,
    /// Idle connections kept a backend.
    pub idle_per_backend_max: usize,
    /// Authorities that https backends are checked against, PEM; no other is trusted.
    pub ca_file: Option<PathBuf>,
}

/// `[auth]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthSettings {
    /// API keys; none leaves the door open.
    pub keys: Vec<KeySettings>,
}

/// `[[auth.keys]]`
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeySettings {
    /// Whose key; shows in logs.
    pub name: String,
    /// The key itself.
    pub key: Option<String>,
    /// A file that holds it.
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// `error`, `warn`, `info`, `debug`, or tracing's directives.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
    /// Where the access log goes.
    pub access: AccessLog,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Where the access log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
    /// Nowhere.
    Off,
}

/// `[prefix]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixSettings {
    /// Blocks remembered, 64 bytes each; a power of two.
    pub lines: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
}

impl Default for ServerSettings {
    fn default() -> Self {
        ServerSettings {
            listen: vec![defaults::LISTEN],
            threads: 0,
            body_max_bytes: defaults::BODY_MAX_BYTES,
            keepalive: defaults::KEEPALIVE,
            drain: defaults::DRAIN,
            linger: defaults::LINGER,
            upgrade_socket: None,
            tls: None,
        }
    }
}

impl Default for AdminSettings {
    fn default() -> Self {
        AdminSettings { listen: defaults::ADMIN_LISTEN, state_file: None }
    }
}

impl Default for SloSettings {
    fn default() -> Self {
        SloSettings { ttft: defaults::TTFT, tpot: defaults::TPOT }
    }
}

impl Default for QueueSettings {
    fn default() -> Self {
        QueueSettings {
            requests_max: defaults::QUEUE_REQUESTS_MAX,
            deadline: defaults::QUEUE_DEADLINE,
            room: defaults::ROOM,
            hopeless_share: defaults::HOPELESS_SHARE,
            hopeless_patience: defaults::HOPELESS_PATIENCE,
            handoff: defaults::HANDOFF,
        }
    }
}

impl Default for PlacementSettings {
    fn default() -> Self {
        PlacementSettings {
            spill: true,
            chunk: defaults::CHUNK,
            whole_below: defaults::WHOLE_BELOW,
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
        RetrySettings { attempts: defaults::ATTEMPTS }
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
