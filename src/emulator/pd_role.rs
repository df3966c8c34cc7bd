//! vLLM's role switch (docs/spec/engine-protocols.md#vllm-pd-role): legs are admitted by role and epoch,
//! and a switch ends only when requests have ended and held KV has been read.

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidegate_types::Seconds;
use tokio::time::{Instant, sleep};

use crate::config::PdRole;
use crate::engine::EmulatedState;
use crate::error_response::ErrorResponse;
use crate::request_body::RequestedHandoff;

/// Interval between checks for the end of work, as in the draft implementation.
const POLL: Duration = Duration::from_millis(10);
/// Default and largest `drain_timeout`.
const DRAIN_TIMEOUT: f64 = 120.0;
const DRAIN_TIMEOUT_MAX: f64 = 3600.0;

/// Role of one engine.
pub struct PdRoleState(Mutex<Current>);

struct Current {
    role: PdRole,
    epoch: u64,
    phase: &'static str,
    target: Option<PdRole>,
    error: Option<String>,
    seconds: Option<f64>,
}

#[derive(Deserialize)]
struct SwitchBody {
    role: PdRole,
    expected_epoch: u64,
    #[serde(default)]
    drain_timeout: Option<f64>,
}

impl PdRoleState {
    /// An engine launched in `role`.
    pub fn new(role: PdRole) -> PdRoleState {
        PdRoleState(Mutex::new(Current {
            role,
            epoch: 0,
            phase: "ready",
            target: None,
            error: None,
            seconds: None,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self, engine: &EmulatedState) -> Value {
        let now = self.lock();
        json!({
            "role": now.role.as_str(), "epoch": now.epoch, "phase": now.phase,
            "target_role": now.target.map(PdRole::as_str),
            "active_requests": engine.counters.open.load(Relaxed), "error": now.error,
            "transition_seconds": now.seconds,
        })
    }
}

/// Refuses requests as the engine's middleware does; `None`: admitted, or roles are not enforced.
pub fn refusal(
    engine: &EmulatedState,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Option<(StatusCode, Bytes)> {
    let state = engine.pd_role.as_ref()?;
    if method == Method::GET || ["/v1/pd_role", "/tokenize", "/detokenize"].contains(&path) {
        return None;
    }
    // The KV protocol between engines runs beside the API server.
    if path == crate::kv_transfer::PATH {
        return None;
    }
    if !["/v1/completions", "/v1/chat/completions"].contains(&path) {
        let error = json!({ "error": "This endpoint is unsupported with runtime P/D switching" });
        return Some((StatusCode::CONFLICT, Bytes::from(error.to_string())));
    }
    let is = |name: &str, value: &str| headers.get(name).is_some_and(|given| given == value);
    let admitted = {
        let now = state.lock();
        now.phase == "ready"
            && is("x-vllm-pd-role", now.role.as_str())
            && is("x-vllm-pd-epoch", &now.epoch.to_string())
    };
    if admitted {
        return None;
    }
    let mut error = state.status(engine);
    error["error"] = "P/D admission rejected".into();
    Some((StatusCode::CONFLICT, Bytes::from(error.to_string())))
}

/// Refuses a request whose hand-off is not that of the engine's role.
///
/// # Errors
/// The request selects no direction, or the other role's.
pub fn check(engine: &EmulatedState, handoff: &RequestedHandoff) -> Result<(), ErrorResponse> {
    let Some(state) = &engine.pd_role else { return Ok(()) };
    let role = state.lock().role;
    match (role, handoff) {
        (PdRole::Prefill, RequestedHandoff::Produce)
        | (PdRole::Decode, RequestedHandoff::Consume(_)) => Ok(()),
        _ => {
            let message = format!("kv_transfer_params do not select role {}", role.as_str());
            Err(ErrorResponse::bad(message, Some("kv_transfer_params")))
        }
    }
}

/// `GET` and `POST /v1/pd_role`.
pub fn serve(engine: &Arc<EmulatedState>, method: &Method, body: &[u8]) -> (StatusCode, Bytes) {
    let detail = |status, text: &str| (status, Bytes::from(json!({ "detail": text }).to_string()));
    let Some(state) = &engine.pd_role else {
        return detail(StatusCode::NOT_FOUND, "Runtime P/D role switching is not enabled");
    };
    if method == Method::GET {
        return (StatusCode::OK, Bytes::from(state.status(engine).to_string()));
    }
    let Ok(call) = serde_json::from_slice::<SwitchBody>(body) else {
        return detail(StatusCode::UNPROCESSABLE_ENTITY, "invalid body");
    };
    let timeout = call.drain_timeout.unwrap_or(DRAIN_TIMEOUT);
    if !(timeout > 0.0 && timeout <= DRAIN_TIMEOUT_MAX) {
        return detail(StatusCode::UNPROCESSABLE_ENTITY, "invalid drain_timeout");
    }
    {
        let mut now = state.lock();
        if now.phase != "ready" {
            let text = "A role transition is already in progress or failed";
            return detail(StatusCode::CONFLICT, text);
        }
        let is_done = now.role == call.role
            && (call.expected_epoch == now.epoch || call.expected_epoch + 1 == now.epoch);
        if !is_done && call.expected_epoch != now.epoch {
            return detail(StatusCode::CONFLICT, "Stale role epoch");
        }
        if !is_done {
            (now.phase, now.target) = ("draining", Some(call.role));
            (now.error, now.seconds) = (None, None);
            let timeout = Seconds(timeout).min(engine.config.pd_role_drain_max);
            tokio::spawn(switch(Arc::clone(engine), call.role, timeout));
        }
    }
    (StatusCode::ACCEPTED, Bytes::from(state.status(engine).to_string()))
}

/// Drains, then commits; goes back to the old role after `timeout`.
async fn switch(engine: Arc<EmulatedState>, to: PdRole, timeout: Seconds) {
    let Some(state) = &engine.pd_role else { return };
    let began = Instant::now();
    let deadline = began + timeout.to_duration();
    let counters = &engine.counters;
    while counters.open.load(Relaxed) > 0 && Instant::now() < deadline {
        sleep(POLL).await;
    }
    let is_http_drained = counters.open.load(Relaxed) == 0;
    if is_http_drained {
        state.lock().phase = "preparing";
    }
    let is_busy = || {
        let work = [&counters.running, &counters.waiting, &counters.kv_used];
        work.iter().any(|counter| counter.load(Relaxed) > 0) || engine.leases.count() > 0
    };
    while is_http_drained && is_busy() && Instant::now() < deadline {
        sleep(POLL).await;
    }
    let is_drained = is_http_drained && !is_busy();
    {
        let mut now = state.lock();
        now.phase = if is_drained { "committing" } else { "rolling_back" };
    }
    // One message to each rank and back.
    sleep(POLL).await;
    let mut now = state.lock();
    now.seconds = Some(began.elapsed().as_secs_f64());
    match (is_drained, engine.config.pd_role_commit_fails) {
        (true, false) => (now.role, now.epoch, now.phase) = (to, now.epoch + 1, "ready"),
        (true, true) => {
            now.phase = "failed";
            now.error = Some("RuntimeError: Engine ranks disagree".to_owned());
        }
        (false, _) => (now.phase, now.error) = ("ready", Some("TimeoutError: ".to_owned())),
    }
}
