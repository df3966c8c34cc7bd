//! Remembers shapes of requests whose prefill leg an engine refused but which it served colocated:
//! later requests of the shape run colocated at once. Fixed memory, no locks; a race or a collision
//! costs one failed split, or one request that is not split.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use tidegate_types::{Moment, Seconds};

/// Number of slots. A fleet's clients have some dozens of shapes, few of which an engine refuses.
const SLOTS: usize = 64;
/// Retention after the first refusal, which may be transient.
const FIRST: Seconds = Seconds(60.0);
/// Retention after a repeated refusal.
const AGAIN: Seconds = Seconds(600.0);

/// Shapes of refused prefill legs.
#[derive(Debug)]
pub struct Shapes {
    /// 1 once a shape was learned; 0: lookups are skipped.
    learned: AtomicU32,
    slots: Box<[Slot]>,
}

#[derive(Debug, Default)]
struct Slot {
    shape: AtomicU64,
    until: AtomicU64,
}

impl Default for Shapes {
    fn default() -> Shapes {
        let slots = (0..SLOTS).map(|_| Slot::default()).collect();
        Shapes { learned: AtomicU32::new(0), slots }
    }
}

impl Shapes {
    /// Returns whether a request of this shape must run colocated. `shape` and `now` are called only if a
    /// shape was learned.
    pub fn runs_colocated(
        &self,
        shape: impl FnOnce() -> Option<u64>,
        now: impl FnOnce() -> Moment,
    ) -> bool {
        if self.learned.load(Relaxed) == 0 {
            return false;
        }
        let Some(shape) = shape() else { return false };
        let slot = self.slot(shape);
        slot.shape.load(Relaxed) == shape && now() < Moment(slot.until.load(Relaxed))
    }

    /// Records that an engine refused the prefill leg of this shape and served it colocated.
    pub fn learn(&self, shape: u64, now: Moment) {
        let slot = self.slot(shape);
        let again = slot.shape.swap(shape, Relaxed) == shape;
        slot.until.store((now + if again { AGAIN } else { FIRST }).0, Relaxed);
        self.learned.store(1, Relaxed);
    }

    fn slot(&self, shape: u64) -> &Slot {
        &self.slots[shape as usize % SLOTS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_retained_longer_after_a_second_refusal() {
        let shapes = Shapes::default();
        let at = |seconds: f64| Moment::START + Seconds(seconds);
        assert!(!shapes.runs_colocated(|| unreachable!("nothing was learned"), || at(0.0)));
        shapes.learn(7, at(0.0));
        assert!(shapes.runs_colocated(|| Some(7), || at(59.0)));
        assert!(!shapes.runs_colocated(|| Some(8), || at(59.0)));
        assert!(!shapes.runs_colocated(|| Some(7), || at(61.0)));
        shapes.learn(7, at(70.0));
        assert!(shapes.runs_colocated(|| Some(7), || at(600.0)));
        shapes.learn(7 + SLOTS as u64, at(600.0));
        assert!(!shapes.runs_colocated(|| Some(7), || at(600.0)), "its slot was taken");
    }
}
