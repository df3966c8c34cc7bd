//! The live proxy: sockets, clocks and tasks around the pure rooms.
//!
//! - [`request`]: the way of a request; open it first
//! - [`intake`], [`estimate`], [`place`], [`legs`], [`answer`], [`relay`], [`settle`]: its stages
//! - [`queue`], [`dispatcher`], [`seat`], [`demand`]: waiting for room, and holding it
//! - [`direct`]: requests that only some backends can take; [`kept`]: which backend keeps what;
//!   [`tunnel`]: websockets
//! - [`discovery`]: models that no table has; [`cors`]: what browsers are told; [`expand`]: names with
//!   several addresses
//! - [`paired`]: both legs of a request at once; [`bootstrap`]: what is asked before them
//! - [`fleet`]: backends, the routing table, live requests
//! - [`control`]: the one writer of the table; [`probe`] and [`learn`] feed it, [`journal`] keeps why,
//!   [`recording`] all of it
//! - [`ask`], [`checkup`]: what engines are asked, and what must fit before anything is served
//! - [`upstream`]: connections to engines; [`signals`]: what they tell beside their answers
//! - [`downstream`]: connections of clients; [`front`]: how they are accepted; [`server`], [`start`],
//!   [`listeners`], [`handover`], [`shutdown`]: the process
//! - [`files`]: every file that the settings name, verified; [`tls`]: certificates
//! - [`scratch`]: where both kinds of connections are read into
//! - [`admin`], [`metrics`], [`access_log`]: what operators see
//! - [`failure`], [`respond`], [`headers`], [`inbound`], [`models`]: values on the way
//! - [`clock`]: the only clock; [`heartbeat`]: what keeps its coarse timers cheap
//!
//! A request takes no lock and never waits for the control loop. What is decided here is only what
//! I/O demands: where a request goes is placement's, which role a backend has is the planner's.
#![allow(
    clippy::disallowed_types,
    reason = "the shell opens sockets and files; files.rs reads them, recording.rs writes one"
)]

mod access_log;
mod admin;
mod answer;
mod ask;
mod attempts;
mod blame;
mod bootstrap;
mod budget;
mod checkup;
pub mod clock;
mod connections;
mod control;
mod cors;
mod decoded;
mod demand;
mod direct;
mod discovery;
mod dispatcher;
mod downstream;
mod estimate;
mod expand;
mod failure;
pub mod files;
pub mod fleet;
mod front;
mod handover;
mod headers;
mod heartbeat;
mod hedge;
mod inbound;
mod intake;
pub mod journal;
mod kept;
mod lanes;
mod learn;
mod legs;
mod listeners;
pub mod log;
mod metrics;
mod models;
mod paired;
mod place;
mod probe;
mod queue;
mod reaction;
mod recording;
mod relay;
mod request;
mod respond;
mod scratch;
mod seat;
pub mod server;
pub mod service;
mod settle;
mod shapes;
mod shutdown;
mod signals;
mod start;
mod tls;
mod tunnel;
mod upstream;
mod verdict;
mod waiting;
mod watch;

pub use listeners::Addresses;
pub use server::{Listeners, Running, run, spawn};
pub use start::StartError;
