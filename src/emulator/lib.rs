//! An engine emulator: the engine model of `tidegate-sim` served over HTTP in real time, with
//! vLLM's API and the NIXL hand-off's semantics.
//!
//! - [`config`]: what is emulated
//! - [`server`]: listeners, connections, engines that can be killed
//! - [`routes`]: paths to answers
//! - [`ask`]: a request's body, read and validated as vLLM does
//! - [`scheduler`]: the task that steps one engine against absolute deadlines
//! - [`handoff`]: leases, reads between engines, failures
//! - [`answer`]: the wire shapes
//! - [`stats`]: what tests and `/metrics` read
//!
//! It must never be easier to please than a real engine: a hand-off that is not real is refused or
//! recomputed and counted, so that a test can tell a transfer from a silent recompute.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "the shell uses sockets")]

pub mod config;
pub mod stats;

mod answer;
mod ask;
mod handoff;
mod routes;
mod scheduler;
mod server;

pub use config::{EmulatorConfig, EngineKind, LoadFailurePolicy};
pub use server::{Running, start};
pub use stats::Stats;
