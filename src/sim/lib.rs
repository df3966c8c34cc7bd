//! The engine model, in virtual time: what policies are compared on, and what the emulator serves.
//!
//! - [`profile`]: engines' constants
//! - [`engine`]: one engine's scheduler and step times
//! - [`trace`]: arrivals, read or made
//! - [`fixed`]: a fleet with a fixed split
//! - [`report`]: what came of a run
//!
//! Time comes in as steps' durations: no clock, no sockets; equal inputs give equal outputs.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod engine;
pub mod fixed;
pub mod profile;
pub mod report;
pub mod trace;

pub use engine::{Engine, Event, SeqId, Sequence, Work};
pub use fixed::{best_split, fixed_split};
pub use profile::Profile;
pub use report::{Outcome, Report};
pub use trace::{Arrival, Trace, TraceError};
