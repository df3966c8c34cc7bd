//! The queued requests of one pool: the feasible class in EDF order, the late class (shortest job
//! first with aging), the share of work that each receives, and batch work behind both in order of
//! arrival.

use super::QueuedRequest;
use crate::tuning::LATE_WORK_WEIGHT;
use std::collections::BTreeSet;
use std::ops::Bound;
use tidegate_types::{Moment, RequestId, Seconds};

/// A sort key: a time, with the request's id as the tie-breaker.
pub(super) type Key = (Moment, RequestId);

/// The class of a queued request: whether it can still meet its TTFT deadline, or is batch work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueClass {
    /// It meets the deadline if it starts by its latest start.
    Feasible,
    /// It misses the deadline.
    Late,
    /// Batch work, which has no deadline.
    Batch,
}

#[derive(Debug, Default)]
pub(super) struct PoolQueue {
    /// Feasible requests by TTFT deadline.
    feasible: BTreeSet<Key>,
    /// Feasible requests by latest start.
    starts: BTreeSet<Key>,
    /// Late requests by arrival time plus [`LATE_WORK_WEIGHT`] times their work: shortest job first
    /// with aging.
    late: BTreeSet<Key>,
    /// Batch work by arrival time.
    batch: BTreeSet<Key>,
    /// Credit of the late class: work that it may receive before the next feasible request. Negative
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
            QueueClass::Batch => {
                self.batch.insert((waiting.job.arrived, id));
            }
        }
    }

    pub(super) fn remove(&mut self, waiting: &QueuedRequest) {
        let id = waiting.job.id;
        self.feasible.remove(&(waiting.job.ttft_deadline, id));
        self.starts.remove(&(waiting.latest_start, id));
        self.late.remove(&(late_key(waiting), id));
        self.batch.remove(&(waiting.job.arrived, id));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.interactive() == 0 && self.batch.is_empty()
    }

    /// Returns the number of requests without batch work.
    pub(super) fn interactive(&self) -> usize {
        self.feasible.len() + self.late.len()
    }

    /// Returns the number of requests of batch work.
    pub(super) fn batch(&self) -> usize {
        self.batch.len()
    }

    /// Returns a feasible request whose latest start is before `now`.
    pub(super) fn first_start_before(&self, now: Moment) -> Option<RequestId> {
        self.starts.first().filter(|(start, _)| *start < now).map(|(_, id)| *id)
    }

    /// Returns the next request of a class after `key`, or the first.
    pub(super) fn after(&self, class: QueueClass, key: Option<Key>) -> Option<Key> {
        let order = match class {
            QueueClass::Feasible => &self.feasible,
            QueueClass::Late => &self.late,
            QueueClass::Batch => &self.batch,
        };
        match key {
            Some(key) => order.range((Bound::Excluded(key), Bound::Unbounded)).next().copied(),
            None => order.first().copied(),
        }
    }

    pub(super) fn late_class_is_due(&self) -> bool {
        self.late_credit > Seconds::ZERO
    }

    /// Charges `work` that was placed for a class to the credit of the late class.
    pub(super) fn charge(&mut self, class: QueueClass, work: Seconds, share: f64) {
        match class {
            QueueClass::Batch => {}
            _ if self.late.is_empty() => self.late_credit = self.late_credit.min(Seconds::ZERO),
            QueueClass::Feasible => self.late_credit += work * share,
            // The share applies only while feasible requests are queued.
            QueueClass::Late if self.feasible.is_empty() => {}
            QueueClass::Late => self.late_credit -= work * (1.0 - share),
        }
    }
}

fn late_key(waiting: &QueuedRequest) -> Moment {
    waiting.job.arrived + waiting.work * LATE_WORK_WEIGHT
}
