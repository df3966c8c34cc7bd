//! Engine-to-engine KV protocol: NIXL's handshake, read and notifications, as one private path
//! of the HTTP listener. Engines in different processes can pair, and a dead engine shows as a
//! connection failure.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidegate_types::Tokens;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::config::{EmulatedEngine, VllmConnector};
use crate::engine::EmulatedState;
use crate::lease::Missing;
use crate::request_body::Remote;
use crate::scheduler::SchedulerCommand;
use crate::stats::EmulatorCounters;

/// Private path of the protocol.
pub const PATH: &str = "/emulator/nixl";

/// Request from one engine to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferMessage {
    /// The read begins.
    Read,
    /// The read is complete.
    Done,
    /// The request is queued: extend the lease.
    Heartbeat,
    /// The read is abandoned.
    Release,
}

#[derive(Debug, Serialize, Deserialize)]
struct TransferRequest {
    what: TransferMessage,
    engine_id: String,
    request_id: String,
    connector: String,
    /// Prompt tokens of the reader.
    tokens: u64,
    /// Prompt tokens whose KV the reader lacks.
    wanted: u64,
}

/// Response to a read.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct TransferredKv {
    /// Hash that represents the KV.
    pub kv: u64,
    /// Tokens that the prefill found in its cache.
    pub cached: u64,
}

/// Failure of a KV transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferError {
    /// The engine does not respond within the handshake timeout.
    Unreachable,
    /// The KV is unknown, expired or already read.
    Refused,
    /// The engine id or the connector does not match.
    WrongEngine,
}

/// Idle connections by host and port.
type IdleConnections = HashMap<(String, u16), Vec<SendRequest<Full<Bytes>>>>;

/// Connection pool to other engines. Reuse keeps a hand-off at two exchanges.
pub struct PeerConnections {
    connector: VllmConnector,
    timeout: Duration,
    idle: Mutex<IdleConnections>,
}

/// Answers a KV request of another engine.
pub fn serve(engine: &EmulatedState, body: &[u8]) -> (StatusCode, Bytes) {
    let Ok(question) = serde_json::from_slice::<TransferRequest>(body) else {
        return (StatusCode::BAD_REQUEST, Bytes::new());
    };
    let connector = engine.config.connector;
    // Engines that rendezvous by name are identified by address alone, except with Mooncake.
    let by_address = match engine.config.kind {
        EmulatedEngine::Sglang(_) | EmulatedEngine::Trtllm => true,
        EmulatedEngine::Vllm => connector == VllmConnector::Offloading,
        EmulatedEngine::Plain => false,
    };
    let known = engine.has_rank(&question.engine_id) || by_address && question.engine_id.is_empty();
    if !known || question.connector != connector.as_str() {
        return (StatusCode::NOT_FOUND, Bytes::from_static(b"\"another engine\""));
    }
    let (id, extension) = (question.request_id.as_str(), (engine.config.lease * (2.0 / 3.0)));
    let extension = extension.to_duration();
    let answer = match question.what {
        TransferMessage::Read => engine
            .leases
            .read(id, question.tokens, extension)
            .map(|held| TransferredKv { kv: held.kv, cached: held.cached }),
        TransferMessage::Heartbeat => {
            engine.leases.extend(id, extension).map(|()| TransferredKv::default())
        }
        TransferMessage::Done | TransferMessage::Release => engine.leases.end(id).map(|held| {
            engine.send_command(SchedulerCommand::Release(held.sequence));
            if question.what == TransferMessage::Done {
                let bytes = question.wanted * engine.config.profile.kv_bytes;
                EmulatorCounters::add(&engine.counters.bytes_out, bytes);
            }
            TransferredKv { kv: held.kv, cached: held.cached }
        }),
    };
    match answer {
        Ok(answer) => {
            (StatusCode::OK, Bytes::from(serde_json::to_vec(&answer).unwrap_or_default()))
        }
        Err(missing) => {
            if missing == Missing::Expired && question.what != TransferMessage::Heartbeat {
                EmulatorCounters::add(&engine.counters.late_reads, 1);
            }
            (StatusCode::GONE, Bytes::from(format!("\"{missing:?}\"")))
        }
    }
}

impl PeerConnections {
    /// Creates the pool with this handshake timeout.
    pub fn new(connector: VllmConnector, timeout: Duration) -> PeerConnections {
        PeerConnections { connector, timeout, idle: Mutex::default() }
    }

    /// Sends a request to the engine that holds `remote`. An unreachable engine is awaited until
    /// the handshake timeout, as by ZMQ.
    ///
    /// # Errors
    /// The engine is unreachable, does not match, or does not hold the KV.
    pub async fn ask(
        &self,
        remote: &Remote,
        what: TransferMessage,
        tokens: Tokens,
        wanted: Tokens,
    ) -> Result<TransferredKv, TransferError> {
        let question = TransferRequest {
            what,
            engine_id: remote.engine_id.clone(),
            request_id: remote.request_id.clone(),
            connector: self.connector.as_str().to_owned(),
            tokens: tokens.get(),
            wanted: wanted.get(),
        };
        let body = Bytes::from(serde_json::to_vec(&question).map_err(|_| TransferError::Refused)?);
        let deadline = Instant::now() + self.timeout;
        match timeout_at(deadline, self.exchange(remote, body)).await {
            Ok(Some((StatusCode::OK, answer))) => {
                serde_json::from_slice(&answer).map_err(|_| TransferError::Refused)
            }
            Ok(Some((StatusCode::NOT_FOUND, _))) => Err(TransferError::WrongEngine),
            Ok(Some(_)) => Err(TransferError::Refused),
            Ok(None) | Err(_) => {
                sleep_until(deadline).await;
                Err(TransferError::Unreachable)
            }
        }
    }

    async fn exchange(&self, remote: &Remote, body: Bytes) -> Option<(StatusCode, Bytes)> {
        let peer = (remote.host.clone(), remote.port);
        // A kept connection may have been closed: retried on a fresh one.
        while let Some(kept) = self.take(&peer) {
            if let Some(answer) = self.send(&peer, kept, body.clone()).await {
                return Some(answer);
            }
        }
        let stream = TcpStream::connect((remote.host.as_str(), remote.port)).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.ok()?;
        // The end of the connection is observed when it is used next.
        tokio::spawn(async move { drop(connection.await) });
        self.send(&peer, sender, body).await
    }

    async fn send(
        &self,
        peer: &(String, u16),
        mut sender: SendRequest<Full<Bytes>>,
        body: Bytes,
    ) -> Option<(StatusCode, Bytes)> {
        let request = Request::post(PATH).header("host", &peer.0).body(Full::new(body)).ok()?;
        let answer = sender.send_request(request).await.ok()?;
        let status = answer.status();
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        self.idle().entry(peer.clone()).or_default().push(sender);
        Some((status, body))
    }

    fn take(&self, peer: &(String, u16)) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle();
        let kept = idle.get_mut(peer)?;
        kept.retain(|sender| !sender.is_closed());
        kept.pop()
    }

    fn idle(&self) -> MutexGuard<'_, IdleConnections> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
