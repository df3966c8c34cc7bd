//! The hand-off of KV between engines, as NixlConnector does it by pull (engine_protocols.md §2): a
//! prefill's blocks are held under a lease; the decode engine reads them over the network, once.
//!
//! An emulated read starts as soon as the decode request arrives, so no heartbeats are needed to
//! keep a lease alive.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tidegate_sim::SeqId;
use tidegate_terms::{Seconds, Tokens};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::ask::HandoffParams;
use crate::scheduler::Command;
use crate::server::Emulated;
use crate::stats::Counters;

/// The private path over which engines read each other's blocks.
pub const READ_PATH: &str = "/emulator/nixl/read";
/// The private path over which a decode engine gives a hand-off up.
pub const GIVE_UP_PATH: &str = "/emulator/nixl/give-up";
/// vLLM's receive timeout in a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often forgotten leases are looked for, at least.
const LEASE_LOOK: Duration = Duration::from_millis(20);

/// Held prefills by request id.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<String, Lease>>);

#[derive(Clone, Copy, Debug)]
struct Lease {
    sequence: SeqId,
    tokens: u64,
    until: Instant,
}

/// What one engine asks another for.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReadRequest {
    engine_id: String,
    request_id: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct ReadAnswer {
    tokens: u64,
    bytes: u64,
}

impl Leases {
    /// Hold a done prefill's KV.
    pub fn hold(&self, request_id: String, sequence: SeqId, tokens: u64, lease: Seconds) {
        let until = Instant::now() + lease.to_duration();
        self.lock().insert(request_id, Lease { sequence, tokens, until });
    }

    /// Take it: once, and only while the lease lasts.
    fn take(&self, request_id: &str) -> Option<(Lease, bool)> {
        let lease = self.lock().remove(request_id)?;
        Some((lease, lease.until >= Instant::now()))
    }

    fn take_expired(&self) -> Vec<Lease> {
        let now = Instant::now();
        let mut expired = Vec::new();
        self.lock().retain(|_, lease| {
            let live = lease.until >= now;
            if !live {
                expired.push(*lease);
            }
            live
        });
        expired
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Free what nobody came for.
pub async fn expire(engine: Arc<Emulated>) {
    let look = (engine.config.lease / 10.0).to_duration().max(LEASE_LOOK);
    loop {
        sleep(look).await;
        for lease in engine.leases.take_expired() {
            Counters::add(&engine.counters.leases_expired, 1);
            engine.tell(Command::Release(lease.sequence));
        }
    }
}

/// Another engine reads blocks from here. `None`: they are not here, or not any more.
pub fn serve_read(engine: &Arc<Emulated>, body: &[u8]) -> Option<Bytes> {
    let request: ReadRequest = serde_json::from_slice(body).ok()?;
    if request.engine_id != engine.id {
        return None;
    }
    let Some((lease, in_time)) = engine.leases.take(&request.request_id) else {
        Counters::add(&engine.counters.late_reads, 1);
        return None;
    };
    if !in_time {
        Counters::add(&engine.counters.leases_expired, 1);
        engine.tell(Command::Release(lease.sequence));
        return None;
    }
    let bytes = lease.tokens * engine.config.profile.kv_bytes;
    Counters::add(&engine.counters.bytes_out, bytes);
    // The blocks are free when the reader has them.
    let (from, took) = (Arc::clone(engine), engine.config.profile.transfer(Tokens(lease.tokens)));
    tokio::spawn(async move {
        sleep(took.to_duration()).await;
        from.tell(Command::Release(lease.sequence));
    });
    serde_json::to_vec(&ReadAnswer { tokens: lease.tokens, bytes }).ok().map(Bytes::from)
}

/// A decode engine refused the request before it read: free the blocks at once.
pub fn serve_give_up(engine: &Emulated, body: &[u8]) {
    let Ok(request) = serde_json::from_slice::<ReadRequest>(body) else { return };
    if let Some((lease, _)) = engine.leases.take(&request.request_id) {
        engine.tell(Command::Release(lease.sequence));
    }
}

/// Read a hand-off's blocks from the engine that holds them. False if they did not come.
pub async fn read(engine: &Emulated, params: &HandoffParams, prompt: u64) -> bool {
    let exchange = ask(params, READ_PATH);
    // An engine cannot register itself as a remote one: vLLM fails such a hand-off.
    let own = params.remote_engine_id.as_deref() == Some(engine.id.as_str());
    let answer = match own {
        true => None,
        false => timeout(HANDSHAKE_TIMEOUT, exchange).await.ok().flatten(),
    };
    let read: Option<ReadAnswer> = answer.and_then(|body| serde_json::from_slice(&body).ok());
    match read.filter(|read| read.tokens == prompt) {
        Some(read) => {
            sleep(engine.config.profile.transfer(Tokens(read.tokens)).to_duration()).await;
            Counters::add(&engine.counters.transfers_in, 1);
            Counters::add(&engine.counters.bytes_in, read.bytes);
            Counters::add(&engine.counters.tokens_in, read.tokens);
            true
        }
        None => {
            Counters::add(&engine.counters.transfers_failed, 1);
            false
        }
    }
}

/// Tell the holder that nobody will read.
pub async fn give_up(params: &HandoffParams) {
    // It is gone, or its lease will end: either way there is nothing more to do.
    timeout(HANDSHAKE_TIMEOUT, ask(params, GIVE_UP_PATH)).await.ok();
}

async fn ask(params: &HandoffParams, path: &'static str) -> Option<Bytes> {
    let request = ReadRequest {
        engine_id: params.remote_engine_id.clone()?,
        request_id: params.remote_request_id.clone()?,
    };
    let address: SocketAddr =
        format!("{}:{}", params.remote_host.as_ref()?, params.remote_port?).parse().ok()?;
    let stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let driver = tokio::spawn(connection);
    let body = Full::new(Bytes::from(serde_json::to_vec(&request).ok()?));
    let request = Request::post(path).header("host", "engine").body(body).ok()?;
    let answer = sender.send_request(request).await.ok();
    let body = match answer.filter(|answer| answer.status().is_success()) {
        Some(answer) => answer.into_body().collect().await.ok().map(|body| body.to_bytes()),
        None => None,
    };
    driver.abort();
    body
}
