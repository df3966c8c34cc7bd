//! The role switch of a vLLM engine with enforced roles (docs/spec/engine-protocols.md#vllm-pd-role):
//! call, then wait for the new epoch. The engine drains its own work too, so that requests of other
//! gateways end first.

use bytes::Bytes;
use http::{Method, StatusCode};
use tidegate_engine::pd_role::{PATH, PdRoleStatus, SwitchPhase, switch_body};
use tidegate_types::{Role, Seconds};
use tokio::time::{Instant, sleep, timeout_at};

use super::gateways::Mandate;
use super::switch::{SwitchResult, exchange, lapsed};
use crate::backends::fleet::Backend;
use crate::backends::pd_role::{PdRoleAnswer, query};

/// Interval between queries of a changing engine; its own validation used 10 ms.
const POLL_INTERVAL: Seconds = Seconds(0.02);
/// Time-out of one query.
const QUERY_TIMEOUT: Seconds = Seconds(5.0);
/// Time after the drain time-out in which the engine commits, or goes back to its old role.
const ROLLBACK_MAX: Seconds = Seconds(30.0);

/// Requests role `to` from a drained engine, which has until `deadline` to end its work, and waits for
/// the result.
pub(super) async fn run(
    backend: &Backend,
    to: Role,
    mandate: &Mandate,
    deadline: Instant,
) -> SwitchResult {
    let before = match query(backend, QUERY_TIMEOUT).await {
        PdRoleAnswer::Absent => return SwitchResult::Switched,
        PdRoleAnswer::Status(status) if status.phase != SwitchPhase::Changing => status,
        _ => match settled(backend, deadline + ROLLBACK_MAX.to_duration()).await {
            Some(status) => status,
            None => return unknown(backend),
        },
    };
    if before.phase == SwitchPhase::Failed || before.role == to {
        return result(backend, &before, to);
    }
    if !mandate.holds() {
        return lapsed(backend);
    }
    let drain = Seconds::from(deadline.saturating_duration_since(Instant::now()));
    let body = switch_body(to, before.epoch, drain);
    if let Some((status, answer)) = call(backend, body, deadline).await
        && status != StatusCode::ACCEPTED
    {
        let text = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
        tracing::error!(backend = %backend.name, "role switch refused by the engine: {status} {text}");
    }
    // The switch goes on if its caller is cut off: the status decides in each case.
    match settled(backend, deadline + ROLLBACK_MAX.to_duration()).await {
        Some(status) => result(backend, &status, to),
        None => unknown(backend),
    }
}

async fn call(backend: &Backend, body: Bytes, deadline: Instant) -> Option<(StatusCode, Bytes)> {
    timeout_at(deadline, exchange(backend, Method::POST, PATH, body)).await.ok()?
}

/// Waits until the engine is no longer changing its role. An engine that restarts meanwhile answers
/// again later.
async fn settled(backend: &Backend, deadline: Instant) -> Option<PdRoleStatus> {
    while Instant::now() < deadline && !backend.has_left() {
        match query(backend, QUERY_TIMEOUT).await {
            PdRoleAnswer::Status(status) if status.phase != SwitchPhase::Changing => {
                return Some(status);
            }
            _ => sleep(POLL_INTERVAL.to_duration()).await,
        }
    }
    None
}

fn result(backend: &Backend, status: &PdRoleStatus, to: Role) -> SwitchResult {
    let why = status.error.as_deref().unwrap_or("no reason given");
    match status.phase {
        SwitchPhase::Ready if status.role == to => SwitchResult::Switched,
        SwitchPhase::Ready => {
            tracing::warn!(backend = %backend.name, "role switch: the engine keeps role {}: {why}", status.role);
            SwitchResult::Restored
        }
        SwitchPhase::Changing | SwitchPhase::Failed => {
            tracing::error!(backend = %backend.name, "role switch failed: the engine admits no requests and must be restarted: {why}");
            SwitchResult::Broken
        }
    }
}

fn unknown(backend: &Backend) -> SwitchResult {
    tracing::error!(backend = %backend.name, "role switch: no result from the engine");
    SwitchResult::Broken
}
