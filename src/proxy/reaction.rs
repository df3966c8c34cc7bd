//! How fast a surge is answered: from the arrival that made the planner move an engine to the table
//! that says so, and to the first request that is placed by it.
//!
//! That arrival is among those that the deciding plan knew and the plan before did not; the first of
//! them is taken, so that nothing is measured too short. A plan that moves an engine without any
//! (a dwell has ended, a backend is back) answers no surge and is not measured. Three atomics;
//! a request pays two relaxed loads, and a store if it is the first since a plan.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_terms::{Moment, Seconds};

/// The first arrival since the last plan; the one whose table nobody has gone by yet, and when that
/// table was published.
#[derive(Debug)]
pub struct Reaction {
    arrived: AtomicU64,
    answered: AtomicU64,
    published: AtomicU64,
}

impl Default for Reaction {
    fn default() -> Reaction {
        let never = || AtomicU64::new(Moment::NEVER.0);
        Reaction { arrived: never(), answered: never(), published: never() }
    }
}

impl Reaction {
    /// A request arrived.
    pub fn arrived(&self, at: Moment) {
        if self.arrived.load(Relaxed) == Moment::NEVER.0 {
            self.arrived.store(at.0, Relaxed);
        }
    }

    /// A plan is about to be made: the first arrival that the last one did not know.
    pub fn seen(&self) -> Option<Moment> {
        let first = Moment(self.arrived.swap(Moment::NEVER.0, Relaxed));
        (first != Moment::NEVER).then_some(first)
    }

    /// The plan moved engines: how long after that arrival.
    pub fn published(&self, arrival: Moment, now: Moment) -> Seconds {
        self.published.store(now.0, Relaxed);
        self.answered.store(arrival.0, Relaxed);
        now - arrival
    }

    /// A request that arrived at `came` is placed at `now`: how long after the surge's arrival, if it
    /// is the first since the table. If it came after the table, the time nobody was there to be
    /// placed is left out.
    pub fn placed(&self, came: Moment, now: impl FnOnce() -> Moment) -> Option<Seconds> {
        if self.answered.load(Relaxed) == Moment::NEVER.0 {
            return None;
        }
        let arrived = Moment(self.answered.swap(Moment::NEVER.0, Relaxed));
        let table = Moment(self.published.load(Relaxed));
        let idle = if came > table { came - table } else { Seconds::ZERO };
        (arrived != Moment::NEVER).then(|| now() - arrived - idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_placement_after_a_table_tells_how_long_it_took() {
        let reaction = Reaction::default();
        let at = |millis: u64| Moment(millis * 1_000_000);
        assert_eq!(reaction.seen(), None, "nothing arrived");
        reaction.arrived(at(10));
        reaction.arrived(at(12));
        let arrival = reaction.seen().unwrap();
        assert_eq!(arrival, at(10));
        assert_eq!(reaction.seen(), None, "the next plan knows them all");
        assert!(reaction.placed(at(10), || at(11)).is_none(), "no table yet");
        assert!((reaction.published(arrival, at(14)).as_millis() - 4.0).abs() < 1e-9);
        let placed = reaction.placed(at(12), || at(15));
        assert!((placed.unwrap().as_millis() - 5.0).abs() < 1e-9);
        assert!(reaction.placed(at(12), || at(16)).is_none(), "once a table");

        reaction.published(at(20), at(22));
        let placed = reaction.placed(at(50), || at(51));
        assert!((placed.unwrap().as_millis() - 3.0).abs() < 1e-9, "28 ms nobody came");
    }
}
