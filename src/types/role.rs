//! What new work a backend is given, and who may change that.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// What new work a backend is given. Work begun under an older role runs to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Prefill legs.
    Prefill,
    /// Decode legs, and whole requests where its streams have slack.
    Decode,
    /// Whole requests, and either leg.
    Mixed,
    /// Nothing new.
    Draining,
}

impl Role {
    /// Every role, in a fixed order.
    pub const ALL: [Role; 4] = [Role::Prefill, Role::Decode, Role::Mixed, Role::Draining];

    /// The lower-case word used in settings, the admin API and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
            Role::Mixed => "mixed",
            Role::Draining => "draining",
        }
    }

    /// May a prefill leg be placed on a backend in this role?
    pub const fn takes_prefill(self) -> bool {
        matches!(self, Role::Prefill | Role::Mixed)
    }

    /// May a decode leg be placed on a backend in this role?
    pub const fn takes_decode(self) -> bool {
        matches!(self, Role::Decode | Role::Mixed)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word is not a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseRoleError(pub String);

impl fmt::Display for ParseRoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a role: use prefill, decode, mixed or draining", self.0)
    }
}

impl std::error::Error for ParseRoleError {}

impl FromStr for Role {
    type Err = ParseRoleError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Role::ALL
            .into_iter()
            .find(|role| role.as_str() == word)
            .ok_or_else(|| ParseRoleError(word.to_owned()))
    }
}

/// Who may change a backend's role (docs/spec/engine-protocols.md#roles).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleCapability {
    /// The proxy alone, per request: nothing to drain, no call to make.
    Instant,
    /// The engine, by an API call once it is idle.
    DrainThenCall,
    /// Nobody, short of a restart.
    Fixed,
}

/// The roles an engine is able to take, as its launch flags allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RoleSet(u8);

impl RoleSet {
    /// No role at all.
    pub const EMPTY: RoleSet = RoleSet(0);
    /// Prefill, decode and mixed: vLLM with `kv_role=kv_both`.
    pub const ANY: RoleSet = RoleSet(0b111);

    /// This set and `role`. `Draining` needs no ability and is never stored.
    #[must_use]
    pub const fn with(self, role: Role) -> RoleSet {
        RoleSet(self.0 | Self::bit(role))
    }

    /// Is `role` allowed? Every backend can be drained.
    pub const fn contains(self, role: Role) -> bool {
        matches!(role, Role::Draining) || self.0 & Self::bit(role) != 0
    }

    /// The roles in this set, `Draining` not among them.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.0 & Self::bit(*role) != 0)
    }

    const fn bit(role: Role) -> u8 {
        match role {
            Role::Prefill => 1,
            Role::Decode => 2,
            Role::Mixed => 4,
            Role::Draining => 0,
        }
    }
}

impl FromIterator<Role> for RoleSet {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        roles.into_iter().fold(RoleSet::EMPTY, RoleSet::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_survives_its_own_word() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert!("Prefill".parse::<Role>().is_err());
    }

    #[test]
    fn every_backend_can_be_drained() {
        assert!(RoleSet::EMPTY.contains(Role::Draining));
        assert!(!RoleSet::EMPTY.contains(Role::Decode));
        assert_eq!(RoleSet::ANY.iter().count(), 3);
    }
}
