//! The sections and their keys. Keys end in their unit. Every key has a default, so that a file
//! says only what differs; what must be said (a backend's name and address) is checked afterwards,
//! with the rest.

mod fleet;
mod health;
mod kubernetes;
mod sidecar;
mod signals;

use serde::Deserialize;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use tidegate_types::{Seconds, Tokens};

use crate::defaults;

pub use fleet::{
    BackendSettings, Connector, EngineName, KvRole, ModelSettings, ScheduleStyle, Secret,
};
pub use health::{EjectionSettings, ProbeSettings};
pub use kubernetes::{KubernetesSettings, PodSettings, Preset, RoleLabelSettings};
pub use sidecar::SidecarSettings;
pub use signals::SignalSettings;

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The data port, for clients.
    pub server: ServerSettings,
    /// The admin port: metrics, probes, fleet, plan, role changes. Keep it from clients.
    pub admin: AdminSettings,
    /// Latency targets. Placement and roles follow from these two numbers.
    pub slo: SloSettings,
    /// Requests wait in tidegate, not in the engines, until an engine has capacity.
    pub queue: QueueSettings,
    /// Choice of a backend for each request.
    pub placement: PlacementSettings,
    /// Moves backends between prefill and decode work.
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
    /// Outlier ejection: backends that fail what other backends serve get no new work for a while.
    pub outlier_ejection: EjectionSettings,
    /// Prefix index: which backend holds which prompt's beginning.
    pub prefix: PrefixSettings,
    /// Readings of engines and GPUs beside the answers.
    pub signals: SignalSettings,
    /// tidegate in an engine's pod, in place of llm-d's pd-sidecar; absent: the headers of such gateways are
    /// not followed.
    pub sidecar: Option<SidecarSettings>,
    /// API server of Kubernetes.
    pub kubernetes: KubernetesSettings,
    /// Models: tokenizer, chat template, context length.
    pub models: Vec<ModelSettings>,
    /// The engines.
    pub backends: Vec<BackendSettings>,
    /// The file that they were read from; it is read again on SIGHUP and when it changes.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Threads that serve requests; 0: one per core.
    pub threads: usize,
    /// Largest request body, in bytes; larger ones get 413.
    pub body_max_bytes: usize,
    /// Memory for all request bodies that are held at once, in bytes; beyond it 503 with `Retry-After`
    /// before a body is read. Absent: half of the cgroup's memory limit, or else of the machine's
    /// memory, at most 1 GiB.
    pub body_budget_bytes: Option<usize>,
    /// Time-out of a client connection: for its header, its next request, and the next part of a body;
    /// of a websocket, for bytes in either direction.
    #[serde(rename = "keepalive_seconds")]
    pub keepalive: Seconds,
    /// Interval of SSE comments to a streaming request that waits for its first token; the first one
    /// comes with the head. 0: never.
    #[serde(rename = "keepalive_comment_seconds")]
    pub keepalive_comment: Seconds,
    /// A client that reads nothing of its answer for this long loses the answer.
    #[serde(rename = "client_stall_seconds")]
    pub client_stall: Seconds,
    /// Most client connections open at once; further ones get 503 and are closed. Keep it below the
    /// process's limit of open files, of which each request in flight takes one more.
    pub connections_max: usize,
    /// The same from one client address; 0: no limit. Not behind a load balancer that hides its
    /// clients' addresses.
    pub connections_per_address_max: usize,
    /// Meaning of a client that closes its sending half after its request.
    pub half_close: HalfClose,
    /// Time that requests in flight have to finish after the linger.
    #[serde(rename = "drain_seconds")]
    pub drain: Seconds,
    /// Time after SIGTERM for which new requests are still served while `/readyz` answers 503.
    #[serde(rename = "linger_seconds")]
    pub linger: Seconds,
    /// Unix socket over which SIGQUIT hands the listeners to a new process.
    pub upgrade_socket: Option<PathBuf>,
    /// Let clients send hand-off members of their own (`kv_transfer_params`, `bootstrap_*`,
    /// `disaggregated_params`, `ec_transfer_params`) and llm-d's hand-off headers. By default such
    /// members are refused with 400, and the headers removed: an engine would connect to whatever
    /// address they name. For a sidecar behind a gateway that disaggregates.
    pub trust_client_handoff: bool,
    /// Hosts and networks that trusted hand-off members may name, for example `10.0.0.0/8`; any if
    /// empty.
    pub handoff_hosts: Vec<String>,
    /// TLS termination on the data port.
    pub tls: Option<TlsSettings>,
    /// Let scripts of other origins read answers; none may if absent.
    pub cors: Option<CorsSettings>,
}

/// `[server.cors]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorsSettings {
    /// Origins as browsers write them (`https://host`), or `*` for all.
    pub allow_origins: Vec<String>,
    /// Methods that scripts may use.
    pub allow_methods: Vec<String>,
    /// Request headers that scripts may send, or `*` for all.
    pub allow_headers: Vec<String>,
    /// Do browsers send cookies and client certificates? Not with all origins.
    pub allow_credentials: bool,
    /// How long a browser may keep the answer to its question.
    #[serde(rename = "max_age_seconds")]
    pub max_age: Seconds,
}

/// What it means that a client closes its sending half: it may have left, and it may be waiting for
/// its answer. Only what is sent to it tells which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HalfClose {
    /// It is answered. After 1 s without an answer a `100 Continue`, or a comment in a stream, shows
    /// whether it is still connected.
    #[default]
    Probe,
    /// It is answered, and no probe is sent.
    Serve,
    /// It has left: its request is cancelled.
    Cancel,
}

impl ServerSettings {
    /// The interval of comments, if there are any.
    pub fn keepalive_comment_interval(&self) -> Option<Seconds> {
        Some(self.keepalive_comment).filter(|interval| *interval > Seconds::ZERO)
    }
}

/// `[server.tls]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Authorities that client certificates are verified against, PEM. Absent: clients are asked for
    /// no certificate.
    pub client_ca_file: Option<PathBuf>,
    /// Whether a client must present a certificate; only with `client_ca_file`.
    pub client_auth: ClientAuth,
}

/// `client_auth`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// A connection without a valid certificate is refused.
    #[default]
    Required,
    /// A certificate is verified if the client presents one.
    Optional,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// Address of the admin port.
    pub listen: SocketAddr,
    /// File that keeps roles set by an operator over a restart; absent: they are not kept.
    pub state_file: Option<PathBuf>,
    /// Values of `Host` that are accepted beside the listening address and loopback names, without
    /// a port. Others are refused: a page of a foreign origin could reach this address by DNS
    /// rebinding.
    pub hosts: Vec<String>,
    /// Bearer token for every admin path but `/livez` and `/readyz`; at least 16 bytes.
    pub token: Option<Secret>,
    /// A file that holds one; beside `token` either is accepted, so that it can be replaced.
    pub token_file: Option<PathBuf>,
    /// Terminate TLS on the admin address.
    pub tls: Option<TlsSettings>,
    /// How long a role set by `tidegate flip` holds before the planner may change it again.
    #[serde(rename = "flip_hold_seconds")]
    pub flip_hold: Seconds,
    /// Ended requests that are kept for `tidegate explain` and `GET /v1/requests`; 0: none.
    pub requests_kept: usize,
}

/// `[slo]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SloSettings {
    /// Target for the time to first token.
    #[serde(rename = "ttft_seconds")]
    pub ttft: Seconds,
    /// Target for the mean time per output token after the first.
    #[serde(rename = "tpot_seconds")]
    pub tpot: Seconds,
}

/// `[queue]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// Most waiting requests; further ones get 429.
    pub requests_max: usize,
    /// Longest wait in the queue; then the request gets 504.
    #[serde(rename = "deadline_seconds")]
    pub deadline: Seconds,
    /// Prefill backlog bound: predicted prefill work that may be in flight on an engine before the
    /// next request is sent to it; about one chunk.
    #[serde(rename = "room_seconds")]
    pub room: Seconds,
    /// Late class: share of the placed prefill work for requests that can no longer meet their TTFT,
    /// 0 to 1.
    #[serde(alias = "hopeless_share")]
    pub late_class_share: f64,
    /// Trunk reservation: a request of the late class leaves one prefill backend idle for the others
    /// until it has waited for this share of `deadline_seconds`, 0 to 1.
    #[serde(alias = "hopeless_patience")]
    pub trunk_reservation_share: f64,
    /// Hand-off deadline: longest time between the end of a prefill and the start of its decode leg;
    /// below the engines' lease.
    #[serde(rename = "handoff_seconds")]
    pub handoff: Seconds,
}

/// `[placement]`
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementSettings {
    /// Spill: decode backends whose streams have slack take whole short requests.
    pub spill: bool,
    /// The engines' `max_num_batched_tokens`; rather too large than too small.
    #[serde(rename = "chunk_tokens")]
    pub chunk: Tokens,
    /// Prompts with fewer uncached tokens are never disaggregated.
    #[serde(rename = "whole_below_tokens")]
    pub whole_below: Tokens,
}

/// `[planner]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlannerSettings {
    /// Automatic role changes; false: only operators change roles.
    pub enabled: bool,
    /// Interval of the planner at rest; a burst is planned for at once.
    #[serde(rename = "interval_seconds")]
    pub interval: Seconds,
    /// Shortest time between two flips of one backend; absent: 5 s.
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
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrySettings {
    /// Backends tried before the first byte, including the first. One that cannot be reached, or
    /// that refuses for load, does not count.
    pub attempts: u32,
    /// Hedging: a request without an answer for this time, and for four times the prediction, is sent to
    /// a second backend too; 0: never.
    #[serde(rename = "hedge_seconds")]
    pub hedge: Seconds,
}

/// `[upstream]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
    /// A stream whose engine sends nothing for this long is cut; 0: only if its engine is found dead.
    #[serde(rename = "silence_seconds")]
    pub silence: Seconds,
    /// Most idle connections per backend.
    pub idle_per_backend_max: usize,
    /// Certificate authorities for https backends, PEM; no other is trusted.
    pub ca_file: Option<PathBuf>,
    /// Certificate chain that tidegate presents to https backends, PEM; with `client_key`.
    pub client_cert: Option<PathBuf>,
    /// Private key of `client_cert`, PEM.
    pub client_key: Option<PathBuf>,
}

/// `[auth]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthSettings {
    /// API keys of clients; without any, every client is admitted.
    pub keys: Vec<KeySettings>,
    /// Forward the client's key to the engines. Without it a key of this gateway stays here. A
    /// gateway without keys forwards `Authorization` in any case.
    pub forward_authorization: bool,
}

/// `[[auth.keys]]`
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeySettings {
    /// Name of the key's holder; shown in logs as `tenant`.
    pub name: String,
    /// The key itself.
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// `error`, `warn`, `info`, `debug`, or tracing's directives.
    pub level: String,
    /// Format of log lines.
    pub format: LogFormat,
    /// Destination of the access log.
    pub access: AccessLog,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// Readable text.
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
    /// No access log.
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
            body_budget_bytes: None,
            keepalive: defaults::KEEPALIVE,
            keepalive_comment: defaults::KEEPALIVE_COMMENT,
            client_stall: defaults::CLIENT_STALL,
            connections_max: defaults::CONNECTIONS_MAX,
            connections_per_address_max: 0,
            half_close: HalfClose::default(),
            drain: defaults::DRAIN,
            linger: defaults::LINGER,
            upgrade_socket: None,
            trust_client_handoff: false,
            handoff_hosts: Vec::new(),
            tls: None,
            cors: None,
        }
    }
}

impl Default for CorsSettings {
    fn default() -> Self {
        CorsSettings {
            allow_origins: Vec::new(),
            allow_methods: vec!["GET".to_owned(), "POST".to_owned(), "DELETE".to_owned()],
            allow_headers: vec!["*".to_owned()],
            allow_credentials: false,
            max_age: defaults::CORS_MAX_AGE,
        }
    }
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
