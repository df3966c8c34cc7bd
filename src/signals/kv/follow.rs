//! Follows one engine's event messages: their order, the cache mirror, and whether the mirror is
//! complete. It is complete if it was built without a gap from message 0 or from a moment at which
//! the cache was empty.

use super::event::{KvBatch, KvEvent};
use super::mirror::{BlockChange, KvMirror};
use super::sequence::{EventSequence, SequenceStep};

/// Follows the events of one engine.
#[derive(Debug)]
pub struct EventFollower {
    sequence: EventSequence,
    mirror: KvMirror,
    complete: bool,
    lost: u64,
}

/// Result of offering a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Its events were applied.
    Applied,
    /// A repetition of an earlier message.
    Seen,
    /// Messages from this number on are missing. The caller fetches them or calls
    /// [`EventFollower::give_up`], then offers this one again.
    Missing(u64),
}

impl EventFollower {
    /// Creates a follower before the first message.
    pub fn new(mirror: KvMirror) -> EventFollower {
        EventFollower { sequence: EventSequence::default(), mirror, complete: false, lost: 0 }
    }

    /// Offers message `number`; `change` receives the resulting index changes.
    pub fn take(
        &mut self,
        number: u64,
        batch: &KvBatch,
        change: &mut impl FnMut(BlockChange),
    ) -> Delivery {
        if self.sequence.classify(number, batch.at) == SequenceStep::Restarted {
            self.restart(change);
        }
        match self.sequence.classify(number, batch.at) {
            SequenceStep::Apply => self.apply(number, batch, change),
            SequenceStep::Gap(from) => return Delivery::Missing(from),
            SequenceStep::Seen | SequenceStep::Restarted => return Delivery::Seen,
        }
        Delivery::Applied
    }

    /// Skips missing messages before `number`. Blocks that they removed remain in the mirror;
    /// blocks that they stored are missing.
    pub fn give_up(&mut self, number: u64) {
        self.complete = false;
        self.lost += number.saturating_sub(self.sequence.next());
        self.sequence.skip_to(number);
    }

    /// Skips message `number`, which could not be decoded.
    pub fn unreadable(&mut self, number: u64) {
        self.give_up(number.saturating_add(1));
    }

    /// Returns whether the mirror holds the engine's whole cache.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Number of the next expected message.
    pub fn next(&self) -> u64 {
        self.sequence.next()
    }

    /// Count of skipped messages.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The mirror of the engine's cache.
    pub fn mirror(&self) -> &KvMirror {
        &self.mirror
    }

    fn apply(&mut self, number: u64, batch: &KvBatch, change: &mut impl FnMut(BlockChange)) {
        if number == 0 {
            self.empty(change);
        }
        for event in &batch.events {
            self.mirror.apply(event, change);
            self.complete |= *event == KvEvent::Cleared;
        }
        self.sequence.applied(number, batch.at);
    }

    /// Empties the mirror: the engine's cache is known to be empty.
    fn empty(&mut self, change: &mut impl FnMut(BlockChange)) {
        self.mirror.clear();
        change(BlockChange::Cleared);
        self.complete = true;
    }

    fn restart(&mut self, change: &mut impl FnMut(BlockChange)) {
        self.empty(change);
        // Events since the restart are still to come.
        self.complete = false;
        self.sequence = EventSequence::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::event::{EngineHash, StoredBlocks};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn follower() -> EventFollower {
        EventFollower::new(KvMirror::new("m", 1, 1000))
    }

    /// Message `number` stores one block, of token `number`.
    fn batch(number: u64, at: f64) -> KvBatch {
        let stored = StoredBlocks {
            hashes: vec![EngineHash(number)],
            tokens: vec![number as u32],
            block_size: 1,
            ..StoredBlocks::default()
        };
        KvBatch { at, events: vec![KvEvent::Stored(stored)], rank: None }
    }

    fn take(follower: &mut EventFollower, number: u64, at: f64) -> Delivery {
        follower.take(number, &batch(number, at), &mut |_| {})
    }

    #[test]
    fn the_mirror_is_complete_from_the_first_message_until_one_is_lost() {
        let mut follower = follower();
        assert_eq!(take(&mut follower, 3, 3.0), Delivery::Missing(0));
        assert_eq!(take(&mut follower, 0, 0.0), Delivery::Applied);
        assert!(follower.is_complete());
        assert_eq!(take(&mut follower, 3, 3.0), Delivery::Missing(1));
        follower.give_up(3);
        assert_eq!(take(&mut follower, 3, 3.0), Delivery::Applied);
        assert!(!follower.is_complete());
        assert_eq!((follower.lost(), follower.mirror().len()), (2, 2));
    }

    #[test]
    fn the_mirror_is_complete_after_the_cache_was_cleared() {
        let mut follower = follower();
        follower.give_up(7);
        assert_eq!(take(&mut follower, 7, 7.0), Delivery::Applied);
        assert!(!follower.is_complete());
        let cleared = KvBatch { at: 8.0, events: vec![KvEvent::Cleared], rank: None };
        assert_eq!(follower.take(8, &cleared, &mut |_| {}), Delivery::Applied);
        assert!(follower.is_complete() && follower.mirror().is_empty());
    }

    #[test]
    fn a_restarted_engine_has_an_empty_cache() {
        let mut follower = follower();
        (0..5).for_each(|number| assert_eq!(take(&mut follower, number, 1.0), Delivery::Applied));
        assert_eq!(take(&mut follower, 0, 1.0), Delivery::Seen);
        let mut changes = Vec::new();
        let taken = follower.take(0, &batch(0, 99.0), &mut |change| changes.push(change));
        assert_eq!((taken, follower.mirror().len()), (Delivery::Applied, 1));
        assert_eq!(changes[0], BlockChange::Cleared);
        // Messages may have been sent between the restart and this one.
        assert_eq!(take(&mut follower, 1, 100.0), Delivery::Applied);
        assert_eq!(take(&mut follower, 0, 200.0), Delivery::Applied);
        assert_eq!(take(&mut follower, 2, 201.0), Delivery::Missing(1));
    }

    #[test]
    fn an_undecodable_message_counts_as_lost() {
        let mut follower = follower();
        take(&mut follower, 0, 1.0);
        follower.unreadable(1);
        assert!(!follower.is_complete());
        assert_eq!((take(&mut follower, 2, 2.0), follower.lost()), (Delivery::Applied, 1));
    }

    proptest! {
        /// After replay of the missing messages the index equals that of a gap-free stream.
        #[test]
        fn a_replay_closes_every_gap(heard in prop::collection::vec(any::<bool>(), 1..50)) {
            let mut follower = follower();
            let mut index = BTreeSet::new();
            let last = heard.len() as u64;
            for number in (0..=last).filter(|n| *n == last || heard[*n as usize]) {
                let mut change = |change| match change {
                    BlockChange::Held(hash) => drop(index.insert(hash)),
                    BlockChange::Gone(hash) => drop(index.remove(&hash)),
                    BlockChange::Cleared => index.clear(),
                };
                if let Delivery::Missing(from) = follower.take(number, &batch(number, 1.0), &mut change) {
                    for number in from..=number {
                        let taken = follower.take(number, &batch(number, 1.0), &mut change);
                        prop_assert_eq!(taken, Delivery::Applied);
                    }
                }
            }
            prop_assert!(follower.is_complete());
            prop_assert_eq!((index.len() as u64, follower.mirror().len() as u64), (last + 1, last + 1));
        }
    }
}
