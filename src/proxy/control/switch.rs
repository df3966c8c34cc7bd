//! A role switch that the engine performs itself (SGLang, vLLM): drain, call, verify. It runs beside the
//! control loop and reports its result to it; it never changes the routing table.

use bytes::Bytes;
use http::{Method, StatusCode};
use std::sync::Arc;
use tidegate_engine::Family;
use tidegate_engine::role_switch::{
    DecodeGraphs, INFO_PATH, SWITCH_PATH, SwitchOutcome, decode_graphs, read_switch, role_now,
    switch_body,
};
use tidegate_types::{BackendId, Role, Seconds};
use tokio::time::{Instant, sleep};

use super::gateways::Mandate;
use super::{Control, pd_role_switch};
use crate::backends::fleet::Backend;
use crate::upstream::Outgoing;
use crate::upstream::read_all;

/// Longest drain. If work is still in flight then, the engine keeps its old role.
const DRAIN_MAX: Seconds = Seconds(300.0);
/// Interval between checks whether the engine is drained.
const POLL_INTERVAL: Seconds = Seconds(0.02);
/// Interval between calls to an engine that reports that it is not idle.
const RETRY_INTERVAL: Seconds = Seconds(1.0);
/// Largest answer that is read, in bytes.
const ANSWER_MAX: usize = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchResult {
    /// The engine reports the new role.
    Switched,
    /// The engine keeps its old role.
    Restored,
    /// The engine is usable in neither role: an operator must restart it.
    Broken,
}

/// A finished switch.
#[derive(Clone, Copy, Debug)]
pub struct FinishedSwitch {
    /// Backend whose role was switched.
    pub backend: BackendId,
    /// The role before the switch.
    pub from: Role,
    /// The requested role.
    pub to: Role,
    /// The cause as recorded in the journal.
    pub cause: &'static str,
    pub end: SwitchResult,
}

/// Drains `backend`, requests the switch and verifies the new role. `peers` supply their decode CUDA
/// graph sizes, which a new decode engine needs. The caller places no new work on `backend`
/// meanwhile. The engine is called only while `mandate` holds.
pub async fn run(
    backend: Arc<Backend>,
    peers: Vec<Arc<Backend>>,
    to: Role,
    mandate: Mandate,
) -> SwitchResult {
    let deadline = Instant::now() + DRAIN_MAX.to_duration();
    while !backend.account.total().is_settled() {
        if Instant::now() > deadline {
            tracing::warn!(backend = %backend.name, "role switch: requests still in flight after {DRAIN_MAX}, old role kept");
            return SwitchResult::Restored;
        }
        sleep(POLL_INTERVAL.to_duration()).await;
    }
    match backend.family {
        Family::VllmPdRole => pd_role_switch::run(&backend, to, &mandate, deadline).await,
        _ => sglang(&backend, &peers, to, &mandate, deadline).await,
    }
}

/// SGLang's switch of a drained engine.
async fn sglang(
    backend: &Backend,
    peers: &[Arc<Backend>],
    to: Role,
    mandate: &Mandate,
    deadline: Instant,
) -> SwitchResult {
    let graphs = if to == Role::Decode { graphs_of(peers).await } else { None };
    let body = switch_body(to, graphs.as_ref());
    loop {
        if !mandate.holds() {
            return lapsed(backend);
        }
        let Some((_, answer)) = exchange(backend, Method::POST, SWITCH_PATH, body.clone()).await
        else {
            tracing::error!(backend = %backend.name, "role switch: no answer from the engine");
            return SwitchResult::Broken;
        };
        match read_switch(&answer) {
            SwitchOutcome::Yes => break,
            SwitchOutcome::NotIdle if Instant::now() < deadline => {
                sleep(RETRY_INTERVAL.to_duration()).await
            }
            SwitchOutcome::NotIdle => return SwitchResult::Restored,
            SwitchOutcome::No { safe_to_restore, message } => {
                tracing::error!(backend = %backend.name, safe_to_restore, "role switch refused by the engine: {message}");
                return if safe_to_restore { SwitchResult::Restored } else { SwitchResult::Broken };
            }
        }
    }
    // A switch without effect answers with success too, so the role is read back.
    let info = exchange(backend, Method::GET, INFO_PATH, Bytes::new()).await;
    match info.and_then(|(_, info)| role_now(&info)) {
        Some(role) if role == to => SwitchResult::Switched,
        role => {
            let role = role.map_or("none", Role::as_str);
            tracing::error!(backend = %backend.name, "role switch to {to} had no effect: the engine reports role {role}");
            SwitchResult::Broken
        }
    }
}

/// The result for a gateway that no longer leads.
pub(super) fn lapsed(backend: &Backend) -> SwitchResult {
    tracing::warn!(backend = %backend.name, "role switch: this gateway no longer leads, the engine is not called");
    SwitchResult::Restored
}

impl Control {
    /// Records that an engine has switched to `role`, as this gateway or the leader has verified.
    pub(super) fn verified(&mut self, backend: BackendId, role: Role) {
        if self.proxy.fleet.backend(backend).family == Family::SglangPd {
            // SGLang's role switch empties the prefix cache.
            self.proxy.fleet.prefixes.forget(backend);
        }
        self.compatibility.switched(backend, role);
    }
}

async fn graphs_of(peers: &[Arc<Backend>]) -> Option<DecodeGraphs> {
    for peer in peers {
        let info = exchange(peer, Method::GET, INFO_PATH, Bytes::new()).await;
        if let Some(graphs) = info.and_then(|(_, info)| decode_graphs(&info)) {
            return Some(graphs);
        }
    }
    None
}

/// The status and body of the engine's answer; `None` without an answer.
pub(super) async fn exchange(
    backend: &Backend,
    method: Method,
    path: &'static str,
    body: Bytes,
) -> Option<(StatusCode, Bytes)> {
    let request = || Outgoing::own(&method, backend.pool.address(), path, body.clone());
    let answer = backend.pool.send(request).await.ok()?;
    let status = answer.head.status;
    Some((status, read_all(answer.body, ANSWER_MAX).await.ok()?))
}
