//! Decisions of the leader election by a Lease. Pure. Expiry is measured from the moment at which this
//! process observed the last change of the record; times written by others are not used, so that clocks
//! need not be synchronised.
//!
//! A leader leads for `renew_deadline` after the start of its last successful write. Other
//! contenders take the Lease `duration` after they observed that write, which is later than its
//! start. With `renew_deadline` below `duration`, two contenders never lead at once.
//! `leaseTransitions` grows with every change of the holder and serves as the fencing epoch.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tidegate_types::{Moment, Seconds};

/// Times of an election.
#[derive(Clone, Copy, Debug)]
pub struct ElectionParams {
    /// A record that did not change for this long has expired.
    pub duration: Seconds,
    /// How long a leader leads after its last successful write began; below `duration`.
    pub renew_deadline: Seconds,
    /// Interval of renewals and of reads of the record.
    pub retry: Seconds,
}

impl Default for ElectionParams {
    /// A new leader within 5 s: `duration`, two reads and a write.
    fn default() -> Self {
        ElectionParams { duration: Seconds(3.0), renew_deadline: Seconds(2.0), retry: Seconds(0.5) }
    }
}

/// A Lease (`coordination.k8s.io/v1`). Unknown fields are dropped: only tidegate writes this Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lease {
    /// `coordination.k8s.io/v1`.
    pub api_version: String,
    /// `Lease`.
    pub kind: String,
    /// Name, version, annotations.
    pub metadata: LeaseMetadata,
    /// The record.
    pub spec: LeaseSpec,
}

/// `metadata` of a Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseMetadata {
    /// Its name.
    pub name: String,
    /// Precondition of a write; empty in a new one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Annotations, one of which is the plan.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// `spec` of a Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    /// Identity of the holder; absent or empty: the Lease is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder_identity: Option<String>,
    /// Informative; each contender applies its own parameters.
    pub lease_duration_seconds: u32,
    /// When the holder took it, RFC 3339 with microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acquire_time: Option<String>,
    /// When the holder wrote last; it changes with each renewal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew_time: Option<String>,
    /// The fencing epoch.
    pub lease_transitions: u64,
}

/// Next action of a contender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElectionStep {
    /// Create the Lease.
    Create(LeaseSpec),
    /// Write this record, with the resourceVersion that was read as precondition.
    Write(LeaseSpec),
    /// None: read the Lease again after `retry`.
    Wait,
}

/// One contender.
#[derive(Clone, Debug)]
pub struct Elector {
    identity: String,
    params: ElectionParams,
    /// The record as last observed, and the time at which its last change was observed.
    seen: Option<(LeaseSpec, Moment)>,
    /// Start of the last successful write, and its epoch.
    led: Option<(Moment, u64)>,
}

impl Elector {
    /// Creates a contender; `identity` must be unique to this process.
    pub fn new(identity: String, params: ElectionParams) -> Elector {
        Elector { identity, params, seen: None, led: None }
    }

    /// Processes the record that was read; `None` without a Lease.
    pub fn observe(&mut self, record: Option<&LeaseSpec>, now: Moment) {
        match (record, &self.seen) {
            (None, _) => self.seen = None,
            (Some(record), Some((known, _))) if record == known => {}
            (Some(record), _) => self.seen = Some((record.clone(), now)),
        }
        let mine = record.is_some_and(|record| self.holds(record));
        if !mine {
            // Taken by another contender, or deleted: further writes will be refused.
            self.led = None;
        }
    }

    /// Returns the next step. `wall` is the wall-clock time for the record, informative only.
    pub fn step(&self, now: Moment, wall: &str) -> ElectionStep {
        let Some((seen, since)) = &self.seen else {
            return ElectionStep::Create(self.record(1, wall));
        };
        if self.holds(seen) {
            let renewal = LeaseSpec {
                acquire_time: seen.acquire_time.clone(),
                ..self.record(seen.lease_transitions, wall)
            };
            let began = self.led.map_or(Moment::START, |(began, _)| began);
            return match now - began >= self.params.retry {
                true => ElectionStep::Write(renewal),
                false => ElectionStep::Wait,
            };
        }
        let is_free = seen.holder_identity.as_deref().is_none_or(str::is_empty);
        match is_free || now - *since >= self.params.duration {
            true => ElectionStep::Write(self.record(seen.lease_transitions + 1, wall)),
            false => ElectionStep::Wait,
        }
    }

    /// Records that a write that began at `began` succeeded.
    pub fn written(&mut self, record: LeaseSpec, began: Moment) {
        if self.holds(&record) {
            self.led = Some((began, record.lease_transitions));
        }
        self.seen = Some((record, began));
    }

    /// Returns the fencing epoch while this contender leads.
    pub fn epoch(&self, now: Moment) -> Option<u64> {
        let (began, epoch) = self.led?;
        (now - began < self.params.renew_deadline).then_some(epoch)
    }

    /// Returns when leadership ends without a further write; `None` if this contender does not lead.
    pub fn leads_until(&self) -> Option<Moment> {
        self.led.map(|(began, _)| began + self.params.renew_deadline)
    }

    /// Returns the record that releases the Lease; `None` if this contender does not lead.
    pub fn released(&self, now: Moment) -> Option<LeaseSpec> {
        let (seen, _) = self.seen.as_ref()?;
        self.epoch(now)?;
        Some(LeaseSpec { holder_identity: None, ..seen.clone() })
    }

    fn holds(&self, record: &LeaseSpec) -> bool {
        record.holder_identity.as_deref() == Some(self.identity.as_str())
    }

    fn record(&self, epoch: u64, wall: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: self.params.duration.get().ceil() as u32,
            acquire_time: Some(wall.to_owned()),
            renew_time: Some(wall.to_owned()),
            lease_transitions: epoch,
        }
    }
}
