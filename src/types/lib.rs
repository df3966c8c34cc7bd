//! The words every room shares: who ([`BackendId`], [`GroupId`], [`PoolId`], [`RequestId`]), what
//! work ([`Role`], [`Tokens`], [`Slo`]), when ([`Moment`], [`Seconds`]) and which assignment
//! ([`Plan`]). A leaf: it imports no other room and must never do I/O, read a clock or draw a
//! random number.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod id;
mod plan;
mod role;
mod slo;
mod time;
mod tokens;

pub use id::{BackendId, GroupId, PlanNumber, PoolId, RequestId};
pub use plan::{Flip, Plan};
pub use role::{ParseRoleError, Role, RoleCapability, RoleSet};
pub use slo::Slo;
pub use time::{Moment, Seconds};
pub use tokens::Tokens;
