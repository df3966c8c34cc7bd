//! The plan as an annotation of the Lease: all roles in one write, ordered by fencing epoch and sequence.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tidegate_types::Role;

use crate::lease::Lease;

/// Key of the annotation.
pub const ANNOTATION: &str = "tidegate.dev/plan";

/// Key of the annotation with the URL at which the leader exchanges loads.
pub const ADDRESS: &str = "tidegate.dev/loads";

/// A plan of a leader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct SharedPlan {
    /// Fencing epoch of the leader that wrote it.
    pub epoch: u64,
    /// Grows with each plan of that leader.
    pub seq: u64,
    /// Role of each backend, by name.
    pub roles: BTreeMap<String, Role>,
}

impl SharedPlan {
    /// Reads the plan of a Lease; `None` if it has none that can be read.
    pub fn of(lease: &Lease) -> Option<SharedPlan> {
        let text = lease.metadata.annotations.get(ANNOTATION)?;
        let plan: SharedPlan = serde_json::from_str(text).ok()?;
        // A plan with a later epoch than the Lease's is invalid.
        (plan.epoch <= lease.spec.lease_transitions).then_some(plan)
    }

    /// Returns the annotation's value.
    pub fn to_text(&self) -> String {
        // Strings, numbers and a map of them always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns whether it replaces `other`: a later epoch, or a later plan of the same leader.
    pub fn replaces(&self, other: &SharedPlan) -> bool {
        (self.epoch, self.seq) > (other.epoch, other.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{LeaseMetadata, LeaseSpec};

    fn plan(epoch: u64, seq: u64) -> SharedPlan {
        let roles =
            BTreeMap::from([("a".to_owned(), Role::Prefill), ("b".to_owned(), Role::Mixed)]);
        SharedPlan { epoch, seq, roles }
    }

    fn lease(epoch: u64, text: &str) -> Lease {
        let annotations = BTreeMap::from([(ANNOTATION.to_owned(), text.to_owned())]);
        Lease {
            metadata: LeaseMetadata { annotations, ..LeaseMetadata::default() },
            spec: LeaseSpec { lease_transitions: epoch, ..LeaseSpec::default() },
            ..Lease::default()
        }
    }

    #[test]
    fn a_plan_round_trips_through_the_annotation() {
        let written = plan(3, 7);
        assert_eq!(SharedPlan::of(&lease(3, &written.to_text())), Some(written));
        assert_eq!(SharedPlan::of(&lease(2, &plan(3, 7).to_text())), None, "of no leader yet");
        assert_eq!(SharedPlan::of(&lease(9, "{")), None);
        assert_eq!(SharedPlan::of(&Lease::default()), None);
    }

    #[test]
    fn plans_are_ordered_by_epoch_and_sequence() {
        assert!(plan(2, 1).replaces(&plan(1, 99)));
        assert!(plan(2, 2).replaces(&plan(2, 1)));
        assert!(!plan(2, 2).replaces(&plan(2, 2)));
        assert!(!plan(1, 99).replaces(&plan(2, 1)), "of an earlier leader");
    }
}
