//! The kind of new work that a backend receives, and how it can be changed.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The kind of new work that a backend receives. Work started under an earlier role runs to its
/// end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Prefill legs.
    Prefill,
    /// Decode legs, and colocated requests where its streams have slack (spill).
    Decode,
    /// Colocated requests, and either leg.
    Mixed,
    /// No new work.
    Draining,
}

impl Role {
    /// Every role, in a fixed order.
    pub const ALL: [Role; 4] = [Role::Prefill, Role::Decode, Role::Mixed, Role::Draining];

    /// Returns the lower-case identifier used in settings, the admin API and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
            Role::Mixed => "mixed",
            Role::Draining => "draining",
        }
    }

    /// Returns whether a backend in this role takes prefill legs.
    pub const fn takes_prefill(self) -> bool {
        matches!(self, Role::Prefill | Role::Mixed)
    }

    /// Returns whether a backend in this role takes decode legs.
    pub const fn takes_decode(self) -> bool {
        matches!(self, Role::Decode | Role::Mixed)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The error of parsing a text that is not a role; contains the text.
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

/// How a backend's role can be changed (docs/spec/engine-protocols.md#roles).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleCapability {
    /// By the proxy, per request: no drain, no call to the engine.
    Instant,
    /// By the engine, with an API call once it is idle.
    DrainThenCall,
    /// Only by a restart.
    Fixed,
}

/// The roles that an engine's launch flags allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RoleSet(u8);

impl RoleSet {
    /// No role.
    pub const EMPTY: RoleSet = RoleSet(0);
    /// Prefill, decode and mixed: vLLM with `kv_role=kv_both`.
    pub const ANY: RoleSet = RoleSet(0b111);

    /// Returns this set with `role` added. `Draining` is always allowed and not stored.
    #[must_use]
    pub const fn with(self, role: Role) -> RoleSet {
        RoleSet(self.0 | Self::bit(role))
    }

    /// Returns whether `role` is allowed; `Draining` always is.
    pub const fn contains(self, role: Role) -> bool {
        matches!(role, Role::Draining) || self.0 & Self::bit(role) != 0
    }

    /// Returns the roles in this set, without `Draining`.
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
    fn every_role_parses_from_its_identifier() {
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
