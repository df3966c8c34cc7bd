//! Placement: the backend of each request, and the EDF queue of requests that must wait.
//!
//! - [`PrefillRequest`], [`DecodeRequest`]: a request to place, a prefilled request to place; [`Excluded`]: the
//!   backends it failed on
//! - [`FleetLoads`], [`BackendLoad`]: the caller's view of the engines, live or simulated
//! - [`Params`]: the parameters
//! - [`place`]: returns a backend for a request, or the reason why it must wait
//! - [`place_decode`]: returns a decode backend for a prefilled request
//! - [`EdfQueue`]: the EDF queue
//! - [`considered`]: the candidates of a placement, for records of decisions
//!
//! Pure functions: the time is an argument, and a job's seed is the only randomness. Placement
//! reserves nothing and stores nothing about the fleet: the caller's [`FleetLoads`] must show a
//! reservation before the next call.

mod candidate;
mod considered;
mod decode;
#[cfg(test)]
pub(crate) mod fixture;
mod fleet;
mod job;
mod order;
mod params;
mod place;
mod queue;

pub use considered::{CONSIDERED_MAX, Considered, considered};
pub use decode::{place_decode, place_decode_overdue};
pub use fleet::{BackendLoad, FleetLoads};
pub use job::{DecodeRequest, Disaggregation, EXCLUDED_MAX, Excluded, PrefillRequest};
pub use params::{LatePolicy, Params, queue_limit};
pub use place::{RouteDecision, UnroutableReason, WaitReason, place};
pub use queue::{EdfQueue, QueueFull, QueueOutcome, Reserved};
