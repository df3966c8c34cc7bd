//! SGLang specifics (docs/spec/engine-protocols.md#sglang): room names and the role switch, which
//! is refused unless the engine is idle.

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::atomic::Ordering::Relaxed;

use crate::config::{EmulatedEngine, SglangMode};
use crate::engine::EmulatedState;

/// Returns the lease name of a room's KV.
pub fn name(room: i64) -> String {
    format!("room-{room}")
}

/// `/server_info`: `disaggregation_mode` remains the launch argument; the internal state has the
/// current one.
pub fn info(engine: &EmulatedState, mode: SglangMode) -> Value {
    let launched = match engine.config.kind {
        EmulatedEngine::Sglang(mode) => mode,
        _ => mode,
    };
    let graphs = engine.graphs.load(Relaxed);
    json!({
        "version": "0.5.23", "disaggregation_mode": launched.as_str(),
        "disaggregation_bootstrap_port": engine.address.port(),
        "internal_states": [{
            "disaggregation_mode": mode.as_str(),
            "effective_running_requests": engine.counters.running.load(Relaxed),
            "decode_cuda_graph_bs": graphs.then_some([1, 2, 4, 8]),
            "decode_cuda_graph_memory_gb": graphs.then_some(1.7),
        }],
    })
}

#[derive(Deserialize)]
struct RoleSwitchRequest {
    new_role: String,
    decode_cuda_graph_memory_gb: Option<f64>,
}

/// `POST /pd_role_switch` (docs/spec/engine-protocols.md#sglang-role-switch); `None` if the engine
/// has no such path.
pub fn switch(engine: &EmulatedState, body: &[u8]) -> Option<(StatusCode, Bytes)> {
    let EmulatedEngine::Sglang(old) = engine.kind() else { return None };
    let answer = |success: bool, message: &str, new: &str, safe: bool| {
        let status = if success { StatusCode::OK } else { StatusCode::BAD_REQUEST };
        let body = json!({
            "success": success, "message": message, "old_role": old.as_str(), "new_role": new,
            "safe_to_restore": safe,
        });
        Some((status, Bytes::from(body.to_string())))
    };
    let Ok(wanted) = serde_json::from_slice::<RoleSwitchRequest>(body) else {
        return answer(false, "new_role must be prefill or decode", "", true);
    };
    let new = wanted.new_role.as_str();
    let mode = match new {
        "prefill" => SglangMode::Prefill,
        "decode" => SglangMode::Decode,
        _ => return answer(false, "new_role must be prefill or decode", new, true),
    };
    if old == SglangMode::Null {
        return answer(false, "role switch is not enabled", new, true);
    }
    if old == mode {
        return answer(true, "already in target role", new, false);
    }
    let counters = &engine.counters;
    let working = [&counters.open, &counters.running, &counters.waiting, &counters.kv_used];
    if working.iter().any(|counter| counter.load(Relaxed) > 0) || engine.leases.count() > 0 {
        let message = "instance is not idle; drain all requests before switching";
        return answer(false, message, new, true);
    }
    let first = mode == SglangMode::Decode && !engine.graphs.load(Relaxed);
    if first && wanted.decode_cuda_graph_memory_gb.is_none() {
        let message = "decode_cuda_graph_memory_gb is required without resident decode graphs";
        return answer(false, message, new, true);
    }
    engine.graphs.fetch_or(first, Relaxed);
    engine.switch(mode);
    answer(true, "ok", new, false)
}
