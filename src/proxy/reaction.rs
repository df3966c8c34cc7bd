//! How fast a surge is answered: from the arrival that made the planner move an engine to the table
//! that says so, and to the first leg that is placed by it, whichever leg and wherever.
//!
//! That arrival is among those that the deciding plan knew and the plan before did not; the first of
//! them is taken, so that nothing is measured too short. A plan that moves an engine without any
//! (a dwell has ended, a backend is back) answers no surge and is not measured, nor one by which a
//! fresh fleet leans: nothing has come that it would have to answer.
//!
//! What is left out is time in which no leg could have been placed, and there are two kinds. Nobody
//! was there: the leg came after the table, and the time between is not counted. Or all of those that
//! waited were tried by the new table and not one found room, on any engine: then the clock stands
//! from the end of that look to the leg's coming, or to the beginning of the look that places it. The
//! way from an event to the look that it causes is not left out where a table is the event.
//!
//! Four atomics; a request pays two relaxed loads, and a store if it is the first since a plan.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_types::{Moment, Seconds};

/// The first arrival since the last plan; the one whose table no leg has gone by yet, when that table
/// was published, and the end of the first look by it that placed nothing.
#[derive(Debug)]
pub struct Reaction {
    arrived: AtomicU64,
    answered: AtomicU64,
    published: AtomicU64,
    fruitless: AtomicU64,
}

impl Default for Reaction {
    fn default() -> Reaction {
        let never = || AtomicU64::new(Moment::NEVER.0);
        Reaction { arrived: never(), answered: never(), published: never(), fruitless: never() }
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
        self.fruitless.store(Moment::NEVER.0, Relaxed);
        self.published.store(now.0, Relaxed);
        self.answered.store(arrival.0, Relaxed);
        now - arrival
    }

    /// All that waited were looked over, from `began` to `now`, and none was placed.
    pub fn found_no_room(&self, began: Moment, now: Moment) {
        let waits = self.answered.load(Relaxed) != Moment::NEVER.0
            && self.fruitless.load(Relaxed) == Moment::NEVER.0;
        if waits && began >= Moment(self.published.load(Relaxed)) {
            self.fruitless.store(now.0, Relaxed);
        }
    }

    /// A leg that there was since `came` is placed by a look that began at `began`: how long after
    /// the surge's arrival, if it is the first since the table.
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
        let looked = fruitless != Moment::NEVER;
        let stands = if looked { fruitless } else { Moment(self.published.load(Relaxed)) };
        let goes_on = if looked && came <= stands { began } else { came };
        let idle = if goes_on > stands { goes_on - stands } else { Seconds::ZERO };
        (arrived != Moment::NEVER).then(|| now() - arrived - idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(millis * 1_000_000)
    }

    /// A table at 14 for an arrival at 10.
    fn answered() -> Reaction {
        let reaction = Reaction::default();
        assert_eq!(reaction.seen(), None, "nothing arrived");
        reaction.arrived(at(10));
        reaction.arrived(at(12));
        let arrival = reaction.seen().unwrap();
        assert_eq!(arrival, at(10));
        assert_eq!(reaction.seen(), None, "the next plan knows them all");
        assert!(reaction.placed(at(10), at(11), || at(11)).is_none(), "no table yet");
        assert!((reaction.published(arrival, at(14)).as_millis() - 4.0).abs() < 1e-9);
        reaction
    }

    fn takes(reaction: &Reaction, came: u64, began: u64, now: u64) -> f64 {
        let took = reaction.placed(at(came), at(began), || at(now)).unwrap();
        assert!(reaction.placed(at(came), at(now), || at(now)).is_none(), "once a table");
        took.as_millis().round()
    }

    #[test]
    fn the_first_placement_after_a_table_tells_how_long_it_took() {
        assert_eq!(takes(&answered(), 12, 15, 16), 6.0);
        assert_eq!(takes(&answered(), 50, 50, 51), 5.0, "36 ms nobody came");
    }

    #[test]
    fn a_wait_for_room_is_no_reaction() {
        let reaction = answered();
        reaction.found_no_room(at(13), at(14));
        assert_eq!(takes(&reaction, 12, 40, 41), 31.0, "that look was by the table before");
        for (came, took) in [(12, 7.0), (39, 8.0)] {
            let reaction = answered();
            reaction.found_no_room(at(15), at(16));
            reaction.found_no_room(at(20), at(21));
            assert_eq!(takes(&reaction, came, 40, 41), took, "the first look ended at 16");
        }
    }
}
