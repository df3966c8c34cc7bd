//! A backend's role as an operator set it.

use tidegate_types::{Moment, Role};

/// The planner does not move a backend that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The role.
    pub role: Role,
    /// When the planner gets the backend back; `None`: when the operator releases it.
    pub until: Option<Moment>,
}
