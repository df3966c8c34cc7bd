//! Results of trial hand-offs of one backend, read by requests. Written by the task of the trials.

use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tidegate_types::BackendId;

/// A trial hand-off that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedHandOff {
    /// The backend that did not decode.
    pub to: BackendId,
    /// Its name.
    pub name: Arc<str>,
    /// Why.
    pub reason: String,
}

/// What the trials of one backend have shown; hand-offs without a trial count as working.
#[derive(Debug, Default)]
pub struct HandOffTrials {
    failed: ArcSwap<Vec<FailedHandOff>>,
    /// Whether every hand-off that was tried from this backend failed.
    none_from: AtomicBool,
    /// Whether every hand-off that was tried to this backend failed.
    none_to: AtomicBool,
}

impl HandOffTrials {
    /// Whether a hand-off to `to` may work.
    pub fn may_reach(&self, to: BackendId) -> bool {
        self.failed.load().iter().all(|failed| failed.to != to)
    }

    /// The hand-offs from this backend that failed.
    pub fn failed(&self) -> Arc<Vec<FailedHandOff>> {
        self.failed.load_full()
    }

    /// Whether a prefill of this backend may be decoded elsewhere.
    pub fn may_hand_off(&self) -> bool {
        !self.none_from.load(Relaxed)
    }

    /// Whether this backend may decode the prefill of another.
    pub fn may_accept(&self) -> bool {
        !self.none_to.load(Relaxed)
    }

    /// Replaces the results.
    pub(crate) fn set(&self, failed: Vec<FailedHandOff>, none_from: bool, none_to: bool) {
        if **self.failed.load() != failed {
            self.failed.store(Arc::new(failed));
        }
        self.none_from.store(none_from, Relaxed);
        self.none_to.store(none_to, Relaxed);
    }
}
