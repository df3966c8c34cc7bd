//! `[server]`: listeners, limits of clients, TLS, CORS.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use tidegate_types::Seconds;

use crate::defaults;

/// `[server]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Threads that serve requests; 0: one per core.
    pub threads: usize,
    /// Largest request body, in bytes; larger ones get 413.
    pub body_max_bytes: usize,
    /// Memory budget of all request bodies in flight, in bytes; above it requests get 503 with
    /// `Retry-After` before their body is read. Absent: half of the cgroup's memory limit, or else of the machine's
    /// memory, at most 1 GiB.
    pub body_budget_bytes: Option<usize>,
    /// Time-out of a client connection for the header, the next request, and the next part of a body; of a
    /// websocket, for bytes in either direction.
    #[serde(rename = "keepalive_seconds")]
    pub keepalive: Seconds,
    /// Interval of SSE comments in a stream before its first token; the first comment is sent with the
    /// head. 0: never.
    #[serde(rename = "keepalive_comment_seconds")]
    pub keepalive_comment: Seconds,
    /// Time for which a client may read nothing before its answer is cancelled.
    #[serde(rename = "client_stall_seconds")]
    pub client_stall: Seconds,
    /// Most client connections open at once; further ones get 503 and are closed. Keep it below the
    /// process's limit of open files, of which each request in flight takes one more.
    pub connections_max: usize,
    /// Most connections from one client address; 0: no limit. Keep 0 behind a load balancer that hides
    /// client addresses.
    pub connections_per_address_max: usize,
    /// Meaning of a client that closes its sending half after its request.
    pub half_close: HalfClose,
    /// Time for requests in flight to finish after the linger.
    #[serde(rename = "drain_seconds")]
    pub drain: Seconds,
    /// Time after SIGTERM for which new requests are still served while `/readyz` answers 503.
    #[serde(rename = "linger_seconds")]
    pub linger: Seconds,
    /// Unix socket over which SIGQUIT hands the listeners to a new process.
    pub upgrade_socket: Option<PathBuf>,
    /// Accept hand-off members from clients (`kv_transfer_params`, `bootstrap_*`,
    /// `disaggregated_params`, `ec_transfer_params`) and llm-d's hand-off headers. By default such
    /// members are refused with 400 and the headers removed, because an engine connects to the address
    /// in them. Set it for a sidecar behind a disaggregating gateway.
    pub trust_client_handoff: bool,
    /// Hosts and networks allowed in hand-off members of clients, for example `10.0.0.0/8`; empty: any.
    pub handoff_hosts: Vec<String>,
    /// TLS termination on the data port.
    pub tls: Option<TlsSettings>,
    /// CORS: origins whose scripts may read answers; absent: none.
    pub cors: Option<CorsSettings>,
}

/// `[server.cors]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorsSettings {
    /// Origins as browsers write them (`https://host`), or `*` for all.
    pub allow_origins: Vec<String>,
    /// Methods that scripts may use.
    pub allow_methods: Vec<String>,
    /// Request headers that scripts may send, or `*` for all.
    pub allow_headers: Vec<String>,
    /// Whether browsers send cookies and client certificates; not with origin `*`.
    pub allow_credentials: bool,
    /// Time for which a browser may cache a preflight answer.
    #[serde(rename = "max_age_seconds")]
    pub max_age: Seconds,
}

/// Meaning of a client's half-close. The client may have disconnected or may be waiting for its answer;
/// only a write shows which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HalfClose {
    /// The client is answered. After 1 s without an answer a `100 Continue`, or a comment in a stream,
    /// tests the connection.
    #[default]
    Probe,
    /// The client is answered; no probe is sent.
    Serve,
    /// The client has disconnected: its request is cancelled.
    Cancel,
}

impl ServerSettings {
    /// Returns the interval of SSE comments; `None` if they are off.
    pub fn keepalive_comment_interval(&self) -> Option<Seconds> {
        Some(self.keepalive_comment).filter(|interval| *interval > Seconds::ZERO)
    }
}

/// `[server.tls]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Certificate authorities of client certificates, PEM; absent: no client certificate is requested.
    pub client_ca_file: Option<PathBuf>,
    /// Whether a client must present a certificate; only with `client_ca_file`.
    pub client_auth: ClientAuth,
}

/// `client_auth`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// A connection without a valid certificate is refused.
    #[default]
    Required,
    /// A certificate is verified if the client presents one.
    Optional,
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
