//! A plan: the numbered, immutable assignment of roles to backends.

use crate::{BackendId, PlanNumber, Role};
use serde::Serialize;

/// Which role each backend has. Dense: slot `i` is backend `i`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    number: PlanNumber,
    roles: Vec<Role>,
}

/// The change of one backend's role between two plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flip {
    /// Whose role changes.
    pub backend: BackendId,
    /// What it had.
    pub from: Role,
    /// What it gets.
    pub to: Role,
}

impl Plan {
    /// The first plan, number 1.
    pub fn first(roles: Vec<Role>) -> Plan {
        Plan { number: PlanNumber(1), roles }
    }

    /// The plan that follows this one, with the given roles.
    #[must_use]
    pub fn next(&self, roles: Vec<Role>) -> Plan {
        Plan { number: PlanNumber(self.number.0 + 1), roles }
    }

    /// This plan's number.
    pub const fn number(&self) -> PlanNumber {
        self.number
    }

    /// A backend's role; one the plan does not know gets nothing new.
    pub fn role(&self, backend: BackendId) -> Role {
        self.roles.get(backend.index()).copied().unwrap_or(Role::Draining)
    }

    /// All roles, by slot.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// What changes from `older` to this plan. A backend that `older` did not know joins and is
    /// no flip.
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
    fn a_plan_tells_what_it_changes() {
        let old = Plan::first(vec![Role::Prefill, Role::Decode]);
        let new = old.next(vec![Role::Prefill, Role::Prefill, Role::Mixed]);
        let flip = Flip { backend: BackendId(1), from: Role::Decode, to: Role::Prefill };
        assert_eq!(new.flips_since(&old), vec![flip]);
        assert!(new.number() > old.number());
        assert_eq!(new.role(BackendId(9)), Role::Draining);
    }
}
