//! vLLM's MooncakeConnector (docs/spec/engine-protocols.md#vllm-mooncake): its bootstrap server's
//! answer, and the role assertion: an engine started as producer or consumer dies of a request for
//! the other role, as the real engine does.

use http::Uri;
use http::header::HeaderMap;
use serde_json::{Map, Value, json};

use crate::body::{Handoff, Remote};
use crate::config::{EngineKind, KvRole, VllmConnector};
use crate::engine::Shared;

/// Returns the lease name of a transfer's KV: only the rank that computed it has it.
fn name(engine_id: &str, transfer: &str) -> String {
    format!("{engine_id}/{transfer}")
}

/// Returns the remote of a transfer's decode leg.
pub fn remote(engine_id: String, transfer: &str, bootstrap: &str) -> Option<Remote> {
    let uri: Uri = bootstrap.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16()?;
    Some(Remote { request_id: name(&engine_id, transfer), engine_id, host, port, meets: true })
}

/// Returns the lease name of a prefill leg, on the rank that the request is pinned to, or any rank.
pub fn pinned(engine: &Shared, headers: &HeaderMap, transfer: &str) -> String {
    let ranks = engine.config.ranks.max(1);
    let said = headers.get("x-data-parallel-rank").and_then(|rank| rank.to_str().ok());
    let rank = said.and_then(|rank| rank.parse().ok()).filter(|rank| *rank < ranks);
    name(&engine.rank_id(rank.unwrap_or_else(|| fastrand::u16(..ranks))), transfer)
}

/// `GET /query`; `None` without a bootstrap server.
pub fn query(engine: &Shared) -> Option<Value> {
    let config = &engine.config;
    let serves = config.kind == EngineKind::Vllm
        && config.connector == VllmConnector::Mooncake
        && config.kv_role != KvRole::Consumer;
    let rank = |rank: u16| {
        let worker = format!("tcp://{}:{}", engine.host, engine.address.port());
        let told =
            json!({ "engine_id": engine.rank_id(rank), "worker_addr": { "0": { "0": worker } } });
        (rank.to_string(), told)
    };
    serves.then(|| Value::Object((0..config.ranks.max(1)).map(rank).collect::<Map<_, _>>()))
}

/// Returns whether the engine aborts on this hand-off.
pub fn asserts(engine: &Shared, handoff: &Handoff) -> bool {
    let mooncake = engine.config.connector == VllmConnector::Mooncake;
    mooncake
        && engine.config.kind == EngineKind::Vllm
        && match engine.config.kv_role {
            KvRole::Both => false,
            KvRole::Producer => matches!(handoff, Handoff::Consume(_)),
            KvRole::Consumer => matches!(handoff, Handoff::Offer(_)),
        }
}
