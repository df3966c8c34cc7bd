//! Open-loop load over HTTP: requests go out when the trace says, whatever became of those before.
//!
//! - [`target`]: whom to load
//! - [`prompts`]: texts of a given number of tokens, with the prefixes that a trace shares
//! - [`run`]: the load itself
//! - [`link`]: a connection that its request drives
//! - [`progress`]: what a live view reads meanwhile; [`failure`]: why requests fail
//!
//! It must never wait for an answer before the next arrival, nor count what it did not see.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "the shell uses sockets")]

pub mod failure;
pub mod progress;
pub mod prompts;
pub mod run;
pub mod target;

mod link;

pub use failure::Failure;
pub use progress::{Progress, Snapshot};
pub use prompts::Prompts;
pub use run::{LoadConfig, run};
pub use target::{Target, TargetError};
