//! The scheduler: the route and the start of each request, and the role of each engine.
//!
//! - [`cost`]: cost models of prefill, decode and hand-off, fitted online; the prefix index
//! - [`inflight`]: the in-flight charges of each backend, settled when dropped
//! - [`learn`]: the online regressions of all backends, from observations of requests
//! - [`placement`]: the route of a request and the EDF queue
//! - [`dispatch`]: placement, reservation and queueing of requests, on the accounts of [`inflight`]
//! - [`planner`]: the role of each backend, with a reason for every change
//! - [`tuning`]: every constant of the decisions
//!
//! Pure: time, events and seeds are arguments. [`placement`] and [`planner`] import [`cost`] and
//! not each other (`tests/behaviour/architecture.rs`). The proxy and the simulator run the same
//! code: it is generic over the [`Word`] that holds its numbers, an atomic in the proxy and a plain
//! cell ([`LocalWord`]) in virtual time.
#![warn(missing_docs)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod cost;
pub mod dispatch;
pub mod inflight;
pub mod learn;
pub mod placement;
pub mod planner;
pub mod tuning;
mod word;

pub use word::{LocalWord, Word};
