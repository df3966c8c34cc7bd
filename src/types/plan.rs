//! A plan: the numbered, immutable assignment of roles to backends.

use crate::{BackendId, PlanNumber, Role};
use serde::Serialize;

/// The role of each backend. Dense: slot `i` is backend `i`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    number: PlanNumber,
    roles: Vec<Role>,
}

/// The change of one backend's role between two plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flip {
    /// The backend.
    pub backend: BackendId,
    /// The role before.
    pub from: Role,
    /// The role after.
    pub to: Role,
}

impl Plan {
    /// Returns the first plan, number 1.
    pub fn first(roles: Vec<Role>) -> Plan {
        Plan { number: PlanNumber(1), roles }
    }

    /// Returns the next plan, with the given roles.
    #[must_use]
    pub fn next(&self, roles: Vec<Role>) -> Plan {
        Plan { number: PlanNumber(self.number.0 + 1), roles }
    }

    /// Returns the number of the plan.
    pub const fn number(&self) -> PlanNumber {
        self.number
    }

    /// Returns the role of a backend; `Draining` if the plan does not contain it.
    pub fn role(&self, backend: BackendId) -> Role {
        self.roles.get(backend.index()).copied().unwrap_or(Role::Draining)
    }

    /// Returns all roles, by slot.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// Returns the flips from `older` to this plan. A backend that `older` does not contain is new
    /// and no flip.
    pub fn flips_since(&self, older: &Plan) -> Vec<Flip> {
        let changed = older.roles.iter().zip(&self.roles).enumerate();
        changed
            .filter(|(_, (from, to))| from != to)
            .map(|(slot, (&from, &to))| Flip { backend: BackendId(slot as u16), from, to })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_lists_its_flips() {
        let old = Plan::first(vec![Role::Prefill, Role::Decode]);
        let new = old.next(vec![Role::Prefill, Role::Prefill, Role::Mixed]);
        let flip = Flip { backend: BackendId(1), from: Role::Decode, to: Role::Prefill };
        assert_eq!(new.flips_since(&old), vec![flip]);
        assert!(new.number() > old.number());
        assert_eq!(new.role(BackendId(9)), Role::Draining);
    }
}
