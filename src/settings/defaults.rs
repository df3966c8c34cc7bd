//! Every default, with the reason for the number.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tidegate_scheduler::tuning;
use tidegate_types::{Seconds, Tokens};

/// Loopback: other addresses are for the operator to choose.
pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Large enough for system prompts and tool lists; many long chat histories need more. A larger cache
/// costs time where every prompt is new (benches/README.md).
pub const TOKENIZER_CACHE_MIB: u16 = 4;
/// As llm-d's pd-sidecar.
pub const PREFILL_RETRY_BACKOFF: Seconds = Seconds(0.2);
/// A new leader within 5 s: the duration, two reads and a write.
pub const LEASE_DURATION: Seconds = Seconds(3.0);
/// Below the duration by more than one request to the API server takes (at most 1 s).
pub const LEASE_RENEW_DEADLINE: Seconds = Seconds(2.0);
/// Four attempts before the renew deadline.
pub const LEASE_RETRY: Seconds = Seconds(0.5);
/// The TTL of CoreDNS for names of a cluster (its `kubernetes` plugin's `ttl`).
pub const DNS_REFRESH: Seconds = Seconds(5.0);
/// vLLM's own default, and llm-d's target port.
pub const ENGINE_PORT: u16 = 8000;
/// SGLang's own default, and Mooncake's.
pub const BOOTSTRAP_PORT: u16 = 8998;
/// vLLM's own default.
pub const SIDE_CHANNEL_PORT: u16 = 5710;
/// Loopback: the admin port changes roles.
pub const ADMIN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// 32 MiB: a million tokens of text are about 4 MB; images in base64 make up the rest.
pub const BODY_MAX_BYTES: usize = 32 << 20;
/// Load balancers hold idle connections for a minute; closing first would race with their reuse.
pub const KEEPALIVE: Seconds = Seconds(75.0);
/// The idle time-outs of proxies and clients start at 10 s.
pub const KEEPALIVE_COMMENT: Seconds = Seconds(5.0);
/// As nginx's `send_timeout`: most clients that read nothing for a minute have disconnected.
pub const CLIENT_STALL: Seconds = Seconds(60.0);
/// Long enough for most streams; Kubernetes kills after 30 s by default.
pub const DRAIN: Seconds = Seconds(30.0);
/// Endpoint removal reaches every kube-proxy and load balancer within a few seconds.
pub const LINGER: Seconds = Seconds(5.0);
/// The targets of the reference table in docs/spec/engine-model.md#reference-results.
pub const TTFT: Seconds = Seconds(1.0);
/// As [`TTFT`].
pub const TPOT: Seconds = Seconds(0.030);
/// Off: the reference table has no ITL target.
pub const ITL: Seconds = Seconds(0.0);
/// About four seconds of a burst of 1,000 requests a second.
pub const QUEUE_REQUESTS_MAX: usize = 4096;
/// Most clients disconnect within half a minute without a first token.
pub const QUEUE_DEADLINE: Seconds = Seconds(30.0);
/// The time between the end of a prefill and the arrival of the next one at the engine.
pub const PREFILL_BACKLOG_MAX: Seconds = tuning::PREFILL_BACKLOG_MAX;
/// 2 % prevents starvation; each further 1 % costs the others about 0.5 points of attainment.
pub const LATE_CLASS_SHARE: f64 = tuning::LATE_CLASS_SHARE;
/// Late requests are mostly long; each would delay several others past their target.
pub const TRUNK_RESERVATION_SHARE: f64 = tuning::TRUNK_RESERVATION_SHARE;
/// vLLM frees a prefill's blocks 30 s after it ended unless a decode engine has requested them.
pub const LEASE: Seconds = Seconds(30.0);
/// Two thirds of the lease; the rest covers clock drift and a slow accept.
pub const HANDOFF: Seconds = Seconds(20.0);
/// A plan for 8 backends takes about a microsecond.
pub const PLAN_INTERVAL: Seconds = Seconds(0.005);
/// The first backend and two retries on other backends: more than two broken engines at once are an
/// outage.
pub const ATTEMPTS: u32 = 3;
/// Several times the TTFT target; a lower value would double the load of a busy fleet.
pub const HEDGE: Seconds = Seconds(5.0);
/// A handshake inside a data centre takes well below a millisecond.
pub const CONNECT_TIMEOUT: Seconds = Seconds(1.0);
/// uvicorn closes idle connections after 5 s.
pub const IDLE: Seconds = Seconds(4.0);
/// A long prompt in a long engine queue may take minutes.
pub const FIRST_BYTE_TIMEOUT: Seconds = Seconds(600.0);
/// No limit: an engine writes a tool call in one piece, which may take minutes.
pub const SILENCE: Seconds = Seconds(0.0);
/// Usual number of concurrent streams of an engine.
pub const IDLE_PER_BACKEND_MAX: usize = 256;
/// A probe costs an engine a millisecond of Python.
pub const PROBE_INTERVAL: Seconds = Seconds(2.0);
/// vLLM's /health answers from its event loop, within milliseconds unless the loop is blocked.
pub const PROBE_TIMEOUT: Seconds = Seconds(1.0);
/// A single lost probe is not evidence.
pub const FAILURES_TO_EJECT: u32 = 2;
/// As Envoy's interval of outlier detection.
pub const EJECTION_WINDOW: Seconds = Seconds(10.0);
/// As Envoy's consecutive_5xx; its own minimum for shares, 100, fits no engine.
pub const EJECTION_REQUESTS_MIN: u32 = 5;
/// As Envoy's failure_percentage_threshold in common use; a healthy engine fails below a hundredth.
pub const EJECTION_FAILURE_SHARE: f64 = 0.5;
/// Longer than a transient failure, shorter than a restart. Envoy's 30 s fit processes that start in a
/// second.
pub const EJECTION: Seconds = Seconds(5.0);
/// A repaired engine returns within a minute.
pub const EJECTION_MAX: Seconds = Seconds(60.0);
/// As linkerd and Istio advise for small pools; Envoy's 10 % of eight engines would be none.
pub const EJECTION_POOL_SHARE: f64 = 0.5;
/// Duration of a few short answers: long enough to detect a second failure at a reduced load.
pub const SLOW_RETURN: Seconds = Seconds(10.0);
/// 4 MiB: 65,536 blocks of 64 tokens remember four million tokens of prompts.
pub const PREFIX_LINES: usize = 1 << 16;
/// Four of vLLM's 16-token blocks: finer costs memory, coarser forgets short shared prefixes.
pub const PREFIX_BLOCK_TOKENS: usize = 64;
/// vLLM's own default on small engines.
pub const STREAMS_MAX: u32 = 256;
/// Llama-3.1-70B on four H100 (docs/spec/engine-model.md#constants).
pub const KV_CAPACITY: Tokens = Tokens(430_000);
/// vLLM's default for unknown GPUs.
pub const CHUNK: Tokens = Tokens(2048);
/// A hand-off takes 3 ms, about as long as 64 tokens of prefill on a large engine.
pub const COLOCATE_BELOW: Tokens = tuning::SHORT_PROMPT;
/// A scrape costs an engine milliseconds of Python; readings calibrate and do not control.
pub const SCRAPE: Seconds = Seconds(5.0);
/// A reading takes well below a millisecond; a lost GPU fails every request until it is detected.
pub const GPU: Seconds = Seconds(1.0);
/// Long enough to observe the effect of a manual flip; a pin holds for longer.
pub const FLIP_HOLD: Seconds = Seconds(600.0);
/// A few minutes of a busy fleet in 3 MB.
pub const REQUESTS_KEPT: usize = 4096;
/// Ten minutes: Firefox keeps an answer for up to a day, Chrome for two hours.
pub const CORS_MAX_AGE: Seconds = Seconds(600.0);
/// systemd's unit allows 65,536 open files; each client connection may have one engine connection.
pub const CONNECTIONS_MAX: usize = 16_384;
