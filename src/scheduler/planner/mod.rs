//! Which role each backend should have: demand and capacity in, roles with reasons out.
//!
//! - [`observation`]: what it gets to see
//! - [`params`]: what the operator may set
//! - [`state`]: what it remembers between two runs
//! - [`demand`]: rates from counts
//! - `capacity`: load of a group on each side, and the streams that an engine carries
//! - `aptitude`: which side each engine of a mixed fleet is better at
//! - `shadow`: what every other split would have cost
//! - [`decide`]: the roles, and why
//! - [`reason`]: a flip's cause and numbers, for the journal
//! - [`recording`]: all it saw and decided, to be decided again
//!
//! It must never read a clock, keep state of its own or draw a random number: the live proxy, the
//! simulator and a replayed journal get the same decisions from the same inputs.

mod aptitude;
mod capacity;
pub mod decide;
pub mod demand;
pub mod observation;
pub mod params;
pub mod reason;
pub mod recording;
mod shadow;
pub mod state;

#[cfg(test)]
mod tests;

pub use decide::{Decision, initial, plan};
pub use observation::{BackendObservation, GroupDemand, Observation};
pub use params::Params;
pub use reason::{Cause, Reason};
pub use state::State;
