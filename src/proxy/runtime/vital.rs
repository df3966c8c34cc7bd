//! Vital parts of the process: one that ends before the proxy stops ends the process.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// A token held by a vital part of the process. Dropped before the proxy stops, it ends the process
/// with an error.
pub struct Vital {
    name: &'static str,
    death: Arc<Death>,
}

/// Which vital part has ended, if any.
#[derive(Debug, Default)]
pub struct Death {
    who: Mutex<Option<&'static str>>,
    /// Set when the proxy stops: parts may end from then on.
    stopping: AtomicBool,
    rung: Notify,
}

impl Death {
    /// The token of a part of the process.
    pub fn vital(self: &Arc<Death>, name: &'static str) -> Vital {
        Vital { name, death: Arc::clone(self) }
    }

    /// The part that ended before the proxy stopped.
    pub fn who(&self) -> Option<&'static str> {
        *self.who.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Death {
    /// Marks the proxy as stopping: parts may end from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// Resolves when a vital part has ended early.
    pub async fn died(&self) {
        self.rung.notified().await;
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if !self.death.stopping.load(Relaxed) {
            *self.death.who.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.name);
            self.death.rung.notify_one();
        }
    }
}
