//! Behaviour over real sockets, with a profile ten times as fast as the reference.

mod client;
mod connectors;
mod handoff;
mod lifecycle;
mod shapes;
mod time;
