//! Epoch of a vLLM engine that enforces its role (docs/spec/engine-protocols.md#vllm-pd-role). Each
//! leg names it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// No epoch is known: a refused leg teaches it.
const UNKNOWN: u64 = u64::MAX;
/// The engine has no `/v1/pd_role`.
const ABSENT: u64 = u64::MAX - 1;

/// The last epoch that the engine reported. Written by probes, role switches and refused legs.
#[derive(Debug)]
pub struct EngineEpoch(AtomicU64);

impl Default for EngineEpoch {
    fn default() -> EngineEpoch {
        EngineEpoch(AtomicU64::new(UNKNOWN))
    }
}

impl EngineEpoch {
    /// The epoch for the next leg.
    pub fn get(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|epoch| *epoch < ABSENT)
    }

    /// Takes the epoch that the engine reports.
    pub fn set(&self, epoch: u64) {
        self.0.store(epoch.min(ABSENT - 1), Relaxed);
    }

    /// Records that the engine has no role switch. Returns whether that is new.
    pub fn set_absent(&self) -> bool {
        self.0.swap(ABSENT, Relaxed) != ABSENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_switch_is_new_once() {
        let epoch = EngineEpoch::default();
        assert_eq!(epoch.get(), None);
        assert!(epoch.set_absent());
        assert!(!epoch.set_absent(), "warned about once");
        assert_eq!(epoch.get(), None);
        epoch.set(3);
        assert_eq!(epoch.get(), Some(3), "an upgraded engine");
    }
}
