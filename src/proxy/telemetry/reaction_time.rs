//! Reaction time: from the first arrival that the previous plan had not seen, to the routing table
//! that reassigns engines, and to the first leg placed with that table, whichever leg and backend.
//!
//! Of the arrivals that only the deciding plan had seen, the first counts. Plans without a new
//! arrival (a hold has ended, a backend has returned) and moves by the cold-start bias are not
//! measured.
//!
//! Time in which no leg could be placed is subtracted. (a) No leg was waiting: the time from the
//! table to the leg's arrival. (b) Every waiting leg was tried with the new table and none fitted:
//! the time from the end of that scan to the leg's arrival, or to the start of the scan that places
//! it. The delay from an event to the scan that it triggers counts only if the event is a new
//! table.
//!
//! Cost: four atomics; two relaxed loads a request, and one store for the first request after a
//! plan.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_types::{Moment, Seconds};

/// Atomics: the first arrival since the last plan; the arrival for which the last table was
/// published; the time of that publication; the end of the first scan with that table that placed
/// nothing.
#[derive(Debug)]
pub struct ReactionTimer {
    arrived: AtomicU64,
    answered: AtomicU64,
    published: AtomicU64,
    fruitless: AtomicU64,
}

impl Default for ReactionTimer {
    fn default() -> ReactionTimer {
        let never = || AtomicU64::new(Moment::NEVER.0);
        ReactionTimer {
            arrived: never(),
            answered: never(),
            published: never(),
            fruitless: never(),
        }
    }
}

impl ReactionTimer {
    /// Records an arrival.
    pub fn arrived(&self, at: Moment) {
        if self.arrived.load(Relaxed) == Moment::NEVER.0 {
            self.arrived.store(at.0, Relaxed);
        }
    }

    /// Called before each plan: takes the first arrival that the previous plan had not seen.
    pub fn seen(&self) -> Option<Moment> {
        let first = Moment(self.arrived.swap(Moment::NEVER.0, Relaxed));
        (first != Moment::NEVER).then_some(first)
    }

    /// Records a published table that reassigns engines. Returns the time since `arrival`.
    pub fn published(&self, arrival: Moment, now: Moment) -> Seconds {
        self.fruitless.store(Moment::NEVER.0, Relaxed);
        self.published.store(now.0, Relaxed);
        self.answered.store(arrival.0, Relaxed);
        now - arrival
    }

    /// Records that all waiting legs were tried between `began` and `now` and none was placed.
    pub fn scan_placed_none(&self, began: Moment, now: Moment) {
        let is_measuring = self.answered.load(Relaxed) != Moment::NEVER.0
            && self.fruitless.load(Relaxed) == Moment::NEVER.0;
        if is_measuring && began >= Moment(self.published.load(Relaxed)) {
            self.fruitless.store(now.0, Relaxed);
        }
    }

    /// Records that a leg that arrived at `came` was placed by a scan that began at `began`.
    /// Returns the reaction time if it is the first leg placed with the table.
    pub fn placed(
        &self,
        came: Moment,
        began: Moment,
        now: impl FnOnce() -> Moment,
    ) -> Option<Seconds> {
        if self.answered.load(Relaxed) == Moment::NEVER.0 {
            return None;
        }
        let arrived = Moment(self.answered.swap(Moment::NEVER.0, Relaxed));
        let fruitless = Moment(self.fruitless.load(Relaxed));
        let scanned = fruitless != Moment::NEVER;
        let idle_from = if scanned { fruitless } else { Moment(self.published.load(Relaxed)) };
        let idle_until = if scanned && came <= idle_from { began } else { came };
        let idle = if idle_until > idle_from { idle_until - idle_from } else { Seconds::ZERO };
        (arrived != Moment::NEVER).then(|| now() - arrived - idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(millis * 1_000_000)
    }

    /// A table published at 14 ms for an arrival at 10 ms.
    fn answered() -> ReactionTimer {
        let reaction = ReactionTimer::default();
        assert_eq!(reaction.seen(), None, "nothing arrived");
        reaction.arrived(at(10));
        reaction.arrived(at(12));
        let arrival = reaction.seen().unwrap();
        assert_eq!(arrival, at(10));
        assert_eq!(reaction.seen(), None, "the plan has seen all arrivals");
        assert!(reaction.placed(at(10), at(11), || at(11)).is_none(), "no table is published");
        assert!((reaction.published(arrival, at(14)).as_millis() - 4.0).abs() < 1e-9);
        reaction
    }

    fn takes(reaction: &ReactionTimer, came: u64, began: u64, now: u64) -> f64 {
        let took = reaction.placed(at(came), at(began), || at(now)).unwrap();
        assert!(
            reaction.placed(at(came), at(now), || at(now)).is_none(),
            "one measurement a table"
        );
        took.as_millis().round()
    }

    #[test]
    fn the_first_placement_with_a_table_ends_the_reaction_time() {
        assert_eq!(takes(&answered(), 12, 15, 16), 6.0);
        assert_eq!(takes(&answered(), 50, 50, 51), 5.0, "36 ms without a waiting leg");
    }

    #[test]
    fn time_without_capacity_is_excluded() {
        let reaction = answered();
        reaction.scan_placed_none(at(13), at(14));
        assert_eq!(takes(&reaction, 12, 40, 41), 31.0, "that scan used the previous table");
        for (came, took) in [(12, 7.0), (39, 8.0)] {
            let reaction = answered();
            reaction.scan_placed_none(at(15), at(16));
            reaction.scan_placed_none(at(20), at(21));
            assert_eq!(takes(&reaction, came, 40, 41), took, "the first scan ended at 16");
        }
    }
}
