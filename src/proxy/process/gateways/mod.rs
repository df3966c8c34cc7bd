//! Exchange of loads between the gateways of one fleet. Each gateway reports its loads to the
//! leader every 10 to 50 ms; the leader returns the sum of the other gateways' loads, which the backends'
//! accounts add to their own (`tidegate_scheduler::gateways`). Requests do not wait for the
//! exchange.
//!
//! The leader is the holder of the Lease (`gateway_lease.rs`), or the first running gateway of
//! `gateways.peers` (`peers.rs`). Without a leader, sums older than one second are dropped, and the
//! gateway counts its own requests only.

mod client;
mod exchange;
mod lines;
mod pacing;
mod peers;
mod server;
mod token;

use std::time::Duration;

pub use exchange::{ExchangeParts, LoadExchange};
pub use peers::GatewayList;
pub use server::{CONNECTIONS_MAX, LoadServer};
pub use token::{GatewayToken, TokenPair};

/// Path of the stream of loads.
const LOADS_PATH: &str = "/v1/gateway/loads";
/// Path of a gateway's identity, and whether it leads.
const STATUS_PATH: &str = "/v1/gateway";
/// Interval and time-out of HTTP/2 pings, which detect a peer that has failed.
const PING: Duration = Duration::from_secs(5);
/// Header of a stream: the identity of the gateway that opens it.
const IDENTITY: &str = "x-tidegate-gateway";

/// Returns the identity of this process: the host name (in a pod, the pod's name) and a random
/// number, so that a restarted process is a new contender.
pub fn identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "tidegate".to_owned());
    format!("{host}-{:08x}", fastrand::u32(..))
}
