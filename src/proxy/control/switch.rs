//! A role switch that the engine itself must make (SGLang): drain, call, verify. It runs beside the
//! control loop and only tells it how it ended; it must never touch the table.

use bytes::Bytes;
use http::Method;
use std::sync::Arc;
use tidegate_engine::role_switch::{
    DecodeGraphs, INFO_PATH, SWITCH_PATH, SwitchOutcome, decode_graphs, read_switch, role_now,
    switch_body,
};
use tidegate_types::{BackendId, Role, Seconds};
use tokio::time::{Instant, sleep};

use crate::answer::read_all;
use crate::fleet::Backend;
use crate::upstream::Outgoing;

/// An engine may take so long to work off what it has; then it goes on in its old role.
const DRAIN_MAX: Seconds = Seconds(300.0);
/// Between two looks whether it has.
const LOOK: Seconds = Seconds(0.02);
/// Between two calls to an engine that says it is not idle.
const AGAIN: Seconds = Seconds(1.0);
/// The largest answer that is read.
const ANSWER_MAX: usize = 4 << 20;

/// How a switch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has the new role, by its own word.
    Switched,
    /// It goes on in its old role.
    Restored,
    /// It can be used in neither: an operator must restart it.
    Broken,
}

/// The end of one switch.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Whose.
    pub backend: BackendId,
    /// The role it had.
    pub from: Role,
    /// The role it was to have.
    pub to: Role,
    /// Who wanted it, as a word.
    pub cause: &'static str,
    /// What came of it.
    pub end: End,
}

/// Drain `backend`, have it switch, and make sure that it did. `peers` are asked for their decode
/// graphs. Nothing new may be sent to it meanwhile: that is the caller's part.
pub async fn run(backend: Arc<Backend>, peers: Vec<Arc<Backend>>, to: Role) -> End {
    let deadline = Instant::now() + DRAIN_MAX.to_duration();
    while !backend.account.balance().is_settled() {
        if Instant::now() > deadline {
            tracing::warn!(backend = %backend.name, "still busy after {DRAIN_MAX}: no switch");
            return End::Restored;
        }
        sleep(LOOK.to_duration()).await;
    }
    let graphs = if to == Role::Decode { graphs_of(&peers).await } else { None };
    let body = switch_body(to, graphs.as_ref());
    loop {
        let Some(answer) = exchange(&backend, Method::POST, SWITCH_PATH, body.clone()).await else {
            tracing::error!(backend = %backend.name, "no answer to its role switch");
            return End::Broken;
        };
        match read_switch(&answer) {
            SwitchOutcome::Yes => break,
            SwitchOutcome::NotIdle if Instant::now() < deadline => sleep(AGAIN.to_duration()).await,
            SwitchOutcome::NotIdle => return End::Restored,
            SwitchOutcome::No { safe_to_restore, message } => {
                tracing::error!(backend = %backend.name, safe_to_restore, "no role switch: {message}");
                return if safe_to_restore { End::Restored } else { End::Broken };
            }
        }
    }
    // A switch that did nothing also answers quickly and well.
    let info = exchange(&backend, Method::GET, INFO_PATH, Bytes::new()).await;
    match info.and_then(|info| role_now(&info)) {
        Some(role) if role == to => End::Switched,
        role => {
            let role = role.map_or("none", Role::as_str);
            tracing::error!(backend = %backend.name, "after its switch to {to} its role is {role}");
            End::Broken
        }
    }
}

async fn graphs_of(peers: &[Arc<Backend>]) -> Option<DecodeGraphs> {
    for peer in peers {
        let info = exchange(peer, Method::GET, INFO_PATH, Bytes::new()).await;
        if let Some(graphs) = info.and_then(|info| decode_graphs(&info)) {
            return Some(graphs);
        }
    }
    None
}

/// The body of an answer, whatever its status; `None` if there was none.
async fn exchange(
    backend: &Backend,
    method: Method,
    path: &'static str,
    body: Bytes,
) -> Option<Bytes> {
    let request = || Outgoing::own(&method, backend.pool.address(), path, body.clone());
    let answer = backend.pool.send(request).await.ok()?;
    read_all(answer.body, ANSWER_MAX).await.ok()
}
