//! Lists of desired backends from sources to the control loop.

use std::sync::Arc;
use tidegate_settings::reconcile::{BadEntry, SourceId};
use tidegate_settings::{BackendSettings, joined};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::control::{Desired, FleetUpdate};

/// Desired backends of a source; unusable entries are problems.
pub type DesiredBackends = Vec<Result<BackendSettings, BadEntry>>;
/// The last known backends of one entry; `None` before the first answer.
pub type KnownBackends = watch::Receiver<Option<Vec<BackendSettings>>>;

/// Returns discovered backends; those that cannot be used are problems.
pub fn checked(backends: impl Iterator<Item = BackendSettings>) -> DesiredBackends {
    let one = |backend: BackendSettings| {
        let problems = backend.problems();
        if problems.is_empty() {
            return Ok(backend);
        }
        Err(BadEntry { name: backend.name, problem: joined(&problems) })
    };
    backends.map(one).collect()
}

/// Sends the backends of all lists whenever one list changes, until the control loop ends.
pub async fn send_changes(
    source: SourceId,
    lists: Vec<KnownBackends>,
    updates: mpsc::Sender<FleetUpdate>,
    mut desired: impl FnMut(Vec<BackendSettings>) -> DesiredBackends,
) {
    let news = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    for list in &lists {
        let (mut list, news) = (list.clone(), Arc::clone(&news));
        tasks.spawn(async move {
            while list.changed().await.is_ok() {
                news.notify_one();
            }
        });
    }
    loop {
        tokio::select! {
            () = news.notified() => {}
            () = updates.closed() => return,
        }
        let all = lists.iter().filter_map(|list| list.borrow().clone()).flatten().collect();
        let update = FleetUpdate { source, desired: Desired::All(desired(all)), reply: None };
        if updates.send(update).await.is_err() {
            return;
        }
    }
}
