//! Types shared by all crates: identifiers ([`BackendId`], [`GroupId`], [`PoolId`], [`RequestId`]),
//! work ([`Role`], [`Tokens`], [`Slo`]), time ([`Moment`], [`Seconds`]) and the assignment of roles
//! ([`Plan`]). This crate imports no other crate of the workspace, does no I/O, reads no clock and
//! draws no random number.
//!
//! ```
//! use tidegate_types::{Moment, Role, Seconds};
//!
//! let arrived = Moment::START + Seconds(1.5);
//! let deadline = arrived + Seconds(2.0);
//! assert_eq!(deadline - arrived, Seconds(2.0));
//! assert!(Role::Prefill.takes_prefill() && !Role::Prefill.takes_decode());
//! ```
#![warn(missing_docs)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod buckets;
mod id;
mod plan;
mod role;
mod slo;
mod time;
mod tokens;

pub use buckets::DurationBuckets;
pub use id::{BACKENDS_MAX, BackendId, GroupId, PlanNumber, PoolId, RequestId};
pub use plan::{Flip, Plan};
pub use role::{ParseRoleError, Role, RoleCapability, RoleSet};
pub use slo::{CLASSES_MAX, ClassId, ClassKind, DEFAULT_CLASS, Slo, Targets, TightestTargets};
pub use time::{Moment, Seconds};
pub use tokens::Tokens;
