//! A pin: an operator's hold on a backend's role.

use tidegate_types::{Moment, Role};

/// Excludes a backend from the planner's role changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Role that the planner must not change.
    pub role: Role,
    /// When the hold ends; `None`: only an operator releases it.
    pub until: Option<Moment>,
}
