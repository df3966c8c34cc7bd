//! Those that wait for one pool: two orders, their sums, and whose turn it is.

use super::Waiting;
use std::collections::BTreeSet;
use std::ops::Bound;
use tidegate_types::{Moment, RequestId, Seconds};

/// When, and whose.
pub(super) type Key = (Moment, RequestId);

/// Of the work owed to the hopeless no more is remembered than this.
const OWED_MAX: Seconds = Seconds(10.0);
/// A share of all would leave nothing to the others.
const SHARE_MAX: f64 = 0.95;

/// Can it still make its TTFT deadline?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rank {
    /// Yes, if it starts soon.
    Hopeful,
    /// No.
    Hopeless,
}

/// The jobs of one pool.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// By TTFT deadline.
    hopeful: BTreeSet<Key>,
    /// The same jobs by when they become hopeless.
    starts: BTreeSet<Key>,
    /// By arrival.
    hopeless: BTreeSet<Key>,
    /// Work the hopeless may have before the others go on; below 0 they have had more than theirs.
    owed: Seconds,
}

impl Line {
    pub(super) fn join(&mut self, waiting: &Waiting) {
        let id = waiting.job.id;
        match waiting.rank {
            Rank::Hopeful => {
                self.hopeful.insert((waiting.job.ttft_deadline, id));
                self.starts.insert((waiting.latest_start, id));
            }
            Rank::Hopeless => {
                self.hopeless.insert((waiting.job.arrived, id));
            }
        }
    }

    pub(super) fn leave(&mut self, waiting: &Waiting) {
        let id = waiting.job.id;
        self.hopeful.remove(&(waiting.job.ttft_deadline, id));
        self.starts.remove(&(waiting.latest_start, id));
        self.hopeless.remove(&(waiting.job.arrived, id));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hopeful.is_empty() && self.hopeless.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.hopeful.len() + self.hopeless.len()
    }

    /// One that should have started before `now` to make its deadline.
    pub(super) fn first_start_before(&self, now: Moment) -> Option<RequestId> {
        self.starts.first().filter(|(start, _)| *start < now).map(|(_, id)| *id)
    }

    /// The next job of a rank behind `key`, or its first.
    pub(super) fn after(&self, rank: Rank, key: Option<Key>) -> Option<Key> {
        let order = match rank {
            Rank::Hopeful => &self.hopeful,
            Rank::Hopeless => &self.hopeless,
        };
        match key {
            Some(key) => order.range((Bound::Excluded(key), Bound::Unbounded)).next().copied(),
            None => order.first().copied(),
        }
    }

    pub(super) fn is_turn_of_hopeless(&self) -> bool {
        self.owed > Seconds::ZERO
    }

    /// `work` of a rank was placed while the other rank may be waiting too.
    pub(super) fn account(&mut self, rank: Rank, work: Seconds, share: f64) {
        let share = share.clamp(0.0, SHARE_MAX);
        match rank {
            _ if self.hopeless.is_empty() => self.owed = self.owed.min(Seconds::ZERO),
            Rank::Hopeful => {
                self.owed = (self.owed + work * (share / (1.0 - share))).min(OWED_MAX);
            }
            // While nobody else waits it costs nobody anything.
            Rank::Hopeless if self.hopeful.is_empty() => {}
            Rank::Hopeless => self.owed -= work,
        }
    }
}
