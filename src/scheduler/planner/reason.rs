//! Cause of a flip, and the numbers behind the decision.

use serde::Serialize;
use tidegate_types::{BackendId, Role};

/// Cause of a role change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The prefill pool is too small for the demand.
    PrefillShort,
    /// The decode pool is too small for the demand.
    DecodeShort,
    /// A role would have had no healthy backend.
    MinimumPerRole,
    /// An operator has pinned the role.
    Pinned,
    /// The launch flags of the engine do not allow its role.
    NotAllowed,
}

impl Cause {
    /// Returns the identifier used in journals and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::PrefillShort => "prefill_short",
            Cause::DecodeShort => "decode_short",
            Cause::MinimumPerRole => "minimum_per_role",
            Cause::Pinned => "pinned",
            Cause::NotAllowed => "not_allowed",
        }
    }
}

/// Reason for the flip of one backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// The backend.
    pub backend: BackendId,
    /// The role before.
    pub from: Role,
    /// The role after.
    pub to: Role,
    /// The cause.
    pub cause: Cause,
    /// The numbers behind the decision, by name; in engines unless the name says otherwise.
    pub numbers: Vec<(&'static str, f64)>,
}
