//! A flip's cause and the numbers it was decided from.

use serde::Serialize;
use tidegate_types::{BackendId, Role};

/// Why a role changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The prefill pool is too small for the demand.
    PrefillShort,
    /// The decode pool is too small for the demand.
    DecodeShort,
    /// A role would have been without a usable backend.
    MinimumPerRole,
    /// An operator fixed it.
    Pinned,
    /// Its role is not one that its launch flags allow.
    NotAllowed,
}

impl Cause {
    /// The word in journals and metrics.
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

/// Why one backend's role changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// Whose.
    pub backend: BackendId,
    /// What it had.
    pub from: Role,
    /// What it gets.
    pub to: Role,
    /// Why.
    pub cause: Cause,
    /// The numbers behind it, by name; engines unless the name says otherwise.
    pub numbers: Vec<(&'static str, f64)>,
}
