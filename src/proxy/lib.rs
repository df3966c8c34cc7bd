//! The live proxy: sockets, clocks and tasks around the pure crates.
//!
//! Rooms (directories of this crate). `tests/behaviour/architecture.rs` lists the rooms that each
//! may import. A request passes from the listener through request and dispatch to an engine; its
//! answer is relayed back by request and listener.
//!
//! - [`process`]: start, files, the admin address, reload, hand-over and shutdown
//! - [`control`]: the control loop, the only writer of the routing table
//! - [`listener`]: sockets and clients' connections
//! - [`request`]: the stages of a request; open `request/handle.rs` first
//! - [`dispatch`]: placement, the EDF queue, legs, retries, hedging, settlement
//! - [`signals`]: what engines and GPUs report beside answers
//! - [`telemetry`]: metrics, logs, the journal, recordings
//! - [`backends`]: engines, the routing table, in-flight requests, probes
//! - [`upstream`]: connections to engines and how an exchange fails
//! - `tls`: certificates
//! - [`runtime`]: clock, timers, budgets, permits
//!
//! A request takes no lock and does not wait for the control loop. This crate contains the I/O
//! only: placement (`tidegate-scheduler`) chooses backends, and the planner chooses their roles.
#![warn(missing_docs)]
#![allow(
    clippy::disallowed_types,
    reason = "this crate does the I/O; files.rs reads files, recording.rs writes one"
)]

pub(crate) mod backends;
mod control;
pub(crate) mod dispatch;
pub(crate) mod listener;
mod process;
pub(crate) mod request;
pub(crate) mod runtime;
pub(crate) mod signals;
pub(crate) mod telemetry;
mod tls;
pub(crate) mod upstream;

pub use backends::fleet;
pub use dispatch::context::Proxy;
pub use listener::sockets::Addresses;
pub use process::admin::what_if;
pub use process::files;
pub use process::server::{Listeners, Running, run, spawn, spawn_with};
pub use process::start_error::StartError;
pub use telemetry::log;
