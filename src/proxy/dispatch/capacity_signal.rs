//! Wakes the dispatcher when capacity is released while requests are waiting.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::sync::Notify;

/// Number of waiting requests, and the dispatcher's wake-up.
#[derive(Debug, Default)]
pub struct CapacitySignal {
    waiting: AtomicUsize,
    changed: Notify,
}

impl CapacitySignal {
    /// Wakes the dispatcher after a settled charge or a new routing table, if requests are waiting.
    pub fn capacity_released(&self) {
        if self.waiting.load(Relaxed) > 0 {
            self.changed.notify_one();
        }
    }

    /// Waits until capacity was released since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Number of waiting requests.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Counts one more waiting request. Returns the number before.
    pub(crate) fn enter(&self) -> usize {
        self.waiting.fetch_add(1, Relaxed)
    }

    /// Counts one waiting request less.
    pub(crate) fn leave(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }
}
