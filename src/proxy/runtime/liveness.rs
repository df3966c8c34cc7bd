//! Liveness of the process's essential tasks. A task that ends before the proxy stops ends the process.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Guard held by an essential task. Dropped before the proxy stops, it ends the process with an error.
pub struct LivenessGuard {
    name: &'static str,
    liveness: Arc<Liveness>,
}

/// Records the essential task that ended early, if any.
#[derive(Debug, Default)]
pub struct Liveness {
    failed_task: Mutex<Option<&'static str>>,
    /// Set when the proxy stops: tasks may end from then on.
    stopping: AtomicBool,
    notify: Notify,
}

impl Liveness {
    /// Returns the guard of the task called `name` in logs.
    pub fn guard(self: &Arc<Liveness>, name: &'static str) -> LivenessGuard {
        LivenessGuard { name, liveness: Arc::clone(self) }
    }

    /// Returns the task that ended before the proxy stopped.
    pub fn failed_task(&self) -> Option<&'static str> {
        *self.failed_task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the proxy as stopping: tasks may end from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// Resolves when a task has ended early.
    pub async fn failed(&self) {
        self.notify.notified().await;
    }
}

impl Drop for LivenessGuard {
    fn drop(&mut self) {
        if !self.liveness.stopping.load(Relaxed) {
            *self.liveness.failed_task.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(self.name);
            self.liveness.notify.notify_one();
        }
    }
}
