//! vLLM's MooncakeConnector (docs/spec/engine-protocols.md#vllm-mooncake): its bootstrap server's
//! answer, and the role assertion: like the real engine, a producer or consumer aborts on a request
//! for the other role.

use http::Uri;
use http::header::HeaderMap;
use serde_json::{Map, Value, json};

use crate::config::{EmulatedEngine, VllmConnector, VllmKvRole};
use crate::engine::EmulatedState;
use crate::request_body::{Remote, RequestedHandoff};

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
pub fn pinned(engine: &EmulatedState, headers: &HeaderMap, transfer: &str) -> String {
    let ranks = engine.config.ranks.max(1);
    let rank_header = headers.get("x-data-parallel-rank").and_then(|rank| rank.to_str().ok());
    let rank = rank_header.and_then(|rank| rank.parse().ok()).filter(|rank| *rank < ranks);
    name(&engine.rank_id(rank.unwrap_or_else(|| fastrand::u16(..ranks))), transfer)
}

/// `GET /query`; `None` without a bootstrap server.
pub fn query(engine: &EmulatedState) -> Option<Value> {
    let config = &engine.config;
    let serves = config.kind == EmulatedEngine::Vllm
        && config.connector == VllmConnector::Mooncake
        && config.kv_role != VllmKvRole::Consumer;
    let rank = |rank: u16| {
        let worker = format!("tcp://{}:{}", engine.host, engine.address.port());
        let told =
            json!({ "engine_id": engine.rank_id(rank), "worker_addr": { "0": { "0": worker } } });
        (rank.to_string(), told)
    };
    serves.then(|| Value::Object((0..config.ranks.max(1)).map(rank).collect::<Map<_, _>>()))
}

/// Returns whether the engine aborts on this hand-off.
pub fn asserts(engine: &EmulatedState, handoff: &RequestedHandoff) -> bool {
    let mooncake = engine.config.connector == VllmConnector::Mooncake;
    mooncake
        && engine.config.kind == EmulatedEngine::Vllm
        && match engine.config.kv_role {
            VllmKvRole::Both => false,
            VllmKvRole::Producer => matches!(handoff, RequestedHandoff::Consume(_)),
            VllmKvRole::Consumer => matches!(handoff, RequestedHandoff::Offer(_)),
        }
}
