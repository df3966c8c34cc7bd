//! Exchange of loads between the gateways of one fleet. Each reports its own loads to the leader every
//! 50 ms, which returns to each the sum of the others'; the accounts of the backends count it beside their
//! own (`tidegate_scheduler::gateways`). Requests wait for none of it.
//!
//! The leader is the holder of the Lease (`gateway_lease.rs`), or the first of `gateways.peers` that is up
//! (`peers.rs`). Without a leader, sums older than a second are dropped, and the gateway counts its own
//! requests alone.

mod client;
mod exchange;
mod lines;
mod peers;
mod server;

use std::net::IpAddr;
use tidegate_settings::Settings;

pub use exchange::{Exchange, Parts};
pub use peers::Peers;
pub use server::{CONNECTIONS_MAX, LoadServer};

/// Path of the stream of loads.
const LOADS_PATH: &str = "/v1/gateway/loads";
/// Path of a gateway's identity, and whether it leads.
const STATUS_PATH: &str = "/v1/gateway";
/// Header of a stream: the identity of the gateway that opens it.
const IDENTITY: &str = "x-tidegate-gateway";

/// Identity of this process: the host's name, which in a pod is the pod's, and a number, because a
/// restarted process is another contender.
pub fn identity() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "tidegate".to_owned());
    format!("{host}-{:08x}", fastrand::u32(..))
}

/// URL of `gateways.listen` for other gateways; `None` if it cannot be derived.
pub fn advertised(settings: &Settings) -> Option<String> {
    let gateways = &settings.gateways;
    if let Some(address) = &gateways.address {
        return Some(address.clone());
    }
    let mut address = gateways.listen?;
    if address.ip().is_unspecified() {
        let pod: IpAddr = std::env::var("POD_IP").ok()?.parse().ok()?;
        address.set_ip(pod);
    }
    let scheme = if gateways.tls.is_some() { "https" } else { "http" };
    Some(format!("{scheme}://{address}"))
}
