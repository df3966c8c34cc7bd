//! How fast a surge is answered: from the arrival that made the planner move an engine to the table
//! that says so, and to the first request that is placed by it. Two atomics; a request pays one
//! relaxed store and one relaxed load.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_terms::{Moment, Seconds};

/// The last arrival, and the one whose table nobody has gone by yet.
#[derive(Debug)]
pub struct Reaction {
    arrived: AtomicU64,
    answered: AtomicU64,
}

impl Default for Reaction {
    fn default() -> Reaction {
        Reaction { arrived: AtomicU64::new(0), answered: AtomicU64::new(Moment::NEVER.0) }
    }
}

impl Reaction {
    /// A request arrived.
    pub fn arrived(&self, at: Moment) {
        self.arrived.store(at.0, Relaxed);
    }

    /// The planner moved engines: how long after the last arrival.
    pub fn published(&self, now: Moment) -> Seconds {
        let arrived = self.arrived.load(Relaxed);
        self.answered.store(arrived, Relaxed);
        now - Moment(arrived)
    }

    /// A request was placed: how long after that arrival, if it is the first since the table.
    pub fn placed(&self, now: impl FnOnce() -> Moment) -> Option<Seconds> {
        if self.answered.load(Relaxed) == Moment::NEVER.0 {
            return None;
        }
        let arrived = Moment(self.answered.swap(Moment::NEVER.0, Relaxed));
        (arrived != Moment::NEVER).then(|| now() - arrived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_placement_after_a_table_tells_how_long_it_took() {
        let reaction = Reaction::default();
        let at = |millis: u64| Moment(millis * 1_000_000);
        reaction.arrived(at(10));
        assert!(reaction.placed(|| at(11)).is_none(), "no table yet");
        assert!((reaction.published(at(14)).as_millis() - 4.0).abs() < 1e-9);
        let placed = reaction.placed(|| at(15));
        assert!((placed.unwrap().as_millis() - 5.0).abs() < 1e-9);
        assert!(reaction.placed(|| at(16)).is_none(), "once a table");
    }
}
