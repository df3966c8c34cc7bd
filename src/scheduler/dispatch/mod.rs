//! Dispatch: placement, reservation and queueing of requests.
//!
//! - [`Accounts`]: the caller's fleet, whose accounts can be charged; [`LegReservation`]: a reserved
//!   first leg
//! - [`try_place`], [`try_place_decode`]: place and reserve now, if a backend has capacity
//! - [`DispatchQueue`]: the queued requests, and the pass that places those with capacity
//! - [`load_of`]: a backend's [`BackendLoad`](crate::placement::BackendLoad) from its properties and its account
//!
//! The proxy and the simulator run this code: the proxy on atomics that many threads charge, the
//! simulator on plain cells in virtual time. No function blocks or reads a clock.

mod accounts;
mod one_reading;
mod queue;
mod reserve;
#[cfg(test)]
mod tests;

pub use crate::tuning::LONGEST_PAUSE;
pub use accounts::{Accounts, load_of};
pub use queue::{DispatchOutcome, DispatchQueue, Refusal, WaitingDecode};
pub use reserve::{LegReservation, PlaceResult, Predicted, try_place, try_place_decode};
