//! A role held by an operator.

use tidegate_types::{Moment, Role};

/// The planner does not move a backend with a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Role that the planner must not change.
    pub role: Role,
    /// When the hold ends; `None`: only an operator releases it.
    pub until: Option<Moment>,
}
