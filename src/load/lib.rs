//! Open-loop load over HTTP: requests are sent at the arrival times of the trace.
//!
//! - [`target`]: the server under load
//! - [`prompts`]: texts of a given number of tokens, with the prefixes that a trace shares
//! - [`run`]: the load generator
//! - [`connection`]: a connection that its request drives
//! - [`progress`]: counters for a live view; [`failure`]: failure reasons
//!
//! Arrivals do not wait for responses, and only observed responses are counted.
//!
//! ```
//! use tidegate_load::Target;
//!
//! let target = Target::parse("http://localhost:8080").unwrap().completions();
//! assert_eq!(target.authority(), "localhost:8080");
//! assert!(Target::parse("https://localhost").is_err(), "plain HTTP only");
//! ```
#![warn(missing_docs)]
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "the shell uses sockets")]

pub mod failure;
pub mod progress;
pub mod prompts;
pub mod run;
pub mod target;

mod connection;

pub use failure::RequestFailure;
pub use progress::{LoadProgress, LoadSnapshot};
pub use prompts::Prompts;
pub use run::{LoadConfig, run};
pub use target::{Target, TargetError};
