//! The waiting jobs of one pool: the feasible and the late class in their orders, and the share of
//! work of each.

use super::QueuedRequest;
use crate::tuning::LATE_WORK_WEIGHT;
use std::collections::BTreeSet;
use std::ops::Bound;
use tidegate_types::{Moment, RequestId, Seconds};

/// A time and the request that it belongs to.
pub(super) type Key = (Moment, RequestId);

/// Whether a job can still meet its TTFT deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueClass {
    /// Feasible: it meets the deadline if it starts by its latest feasible start.
    Feasible,
    /// Late class: it misses the deadline.
    Late,
}

#[derive(Debug, Default)]
pub(super) struct PoolQueue {
    /// Feasible jobs by TTFT deadline.
    feasible: BTreeSet<Key>,
    /// Feasible jobs by latest feasible start.
    starts: BTreeSet<Key>,
    /// Late jobs by arrival time plus [`LATE_WORK_WEIGHT`] times their work: shortest job first with
    /// aging.
    late: BTreeSet<Key>,
    /// Credit of the late class: work that it may receive before feasible jobs continue. Negative
    /// after it has received more than its share.
    late_credit: Seconds,
}

impl PoolQueue {
    pub(super) fn insert(&mut self, waiting: &QueuedRequest) {
        let id = waiting.job.id;
        match waiting.class {
            QueueClass::Feasible => {
                self.feasible.insert((waiting.job.ttft_deadline, id));
                self.starts.insert((waiting.latest_start, id));
            }
            QueueClass::Late => {
                self.late.insert((late_key(waiting), id));
            }
        }
    }

    pub(super) fn remove(&mut self, waiting: &QueuedRequest) {
        let id = waiting.job.id;
        self.feasible.remove(&(waiting.job.ttft_deadline, id));
        self.starts.remove(&(waiting.latest_start, id));
        self.late.remove(&(late_key(waiting), id));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.feasible.is_empty() && self.late.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.feasible.len() + self.late.len()
    }

    /// Returns a job whose latest feasible start is before `now`.
    pub(super) fn first_start_before(&self, now: Moment) -> Option<RequestId> {
        self.starts.first().filter(|(start, _)| *start < now).map(|(_, id)| *id)
    }

    /// Returns the next job of a class after `key`, or the first.
    pub(super) fn after(&self, class: QueueClass, key: Option<Key>) -> Option<Key> {
        let order = match class {
            QueueClass::Feasible => &self.feasible,
            QueueClass::Late => &self.late,
        };
        match key {
            Some(key) => order.range((Bound::Excluded(key), Bound::Unbounded)).next().copied(),
            None => order.first().copied(),
        }
    }

    pub(super) fn late_class_is_due(&self) -> bool {
        self.late_credit > Seconds::ZERO
    }

    /// Accounts for `work` placed for a class while the other class may be waiting too.
    pub(super) fn charge(&mut self, class: QueueClass, work: Seconds, share: f64) {
        match class {
            _ if self.late.is_empty() => self.late_credit = self.late_credit.min(Seconds::ZERO),
            QueueClass::Feasible => self.late_credit += work * share,
            // Without feasible jobs in the queue, late work is not charged to the share.
            QueueClass::Late if self.feasible.is_empty() => {}
            QueueClass::Late => self.late_credit -= work * (1.0 - share),
        }
    }
}

fn late_key(waiting: &QueuedRequest) -> Moment {
    waiting.job.arrived + waiting.work * LATE_WORK_WEIGHT
}
