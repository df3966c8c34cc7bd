//! `[gateways]`: several gateways of one fleet.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use tidegate_types::Seconds;

use crate::defaults;
use crate::schema::TlsSettings;

/// `[gateways]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewaySettings {
    /// Address for the exchange of loads: other gateways send their loads here while this gateway leads,
    /// and receive the sum of the others' loads, every 10 to 50 ms; absent: this gateway counts its own
    /// requests only.
    pub listen: Option<SocketAddr>,
    /// URL of `listen` for other gateways, published in the Lease; absent: derived from `listen`, with the
    /// address in the environment variable `POD_IP` if `listen` is a wildcard.
    pub address: Option<String>,
    /// URLs of `listen` of all gateways including this one, in the same order in every gateway. The first
    /// gateway that is up leads until it ends. With `[gateways.kubernetes]` the holder of the Lease leads
    /// instead.
    pub peers: Vec<String>,
    /// File with the bearer token of all gateways, at least 16 bytes. It is reread when it changes, and the
    /// previous token is accepted for 180 s more. A `listen` address other than loopback needs it or client
    /// certificates.
    pub token_file: Option<PathBuf>,
    /// Name in the certificate of every gateway; absent: the host of its URL.
    pub server_name: Option<String>,
    /// TLS between gateways: the certificate is presented on both sides, and `client_ca_file` verifies
    /// both.
    pub tls: Option<TlsSettings>,
    /// A Lease in the API server of `[kubernetes]`: its holder plans for all gateways with the same Lease;
    /// absent: this gateway plans for itself.
    pub kubernetes: Option<LeaseSettings>,
}

/// `[gateways.kubernetes]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseSettings {
    /// Name of the Lease, in `kubernetes.namespace`.
    #[serde(rename = "lease")]
    pub name: String,
    /// Time without a renewal after which another gateway takes the Lease.
    #[serde(rename = "duration_seconds")]
    pub duration: Seconds,
    /// Time without a renewal after which the leader stops planning; below `duration_seconds`.
    #[serde(rename = "renew_deadline_seconds")]
    pub renew_deadline: Seconds,
    /// Interval of renewals and of reads of the Lease; below `renew_deadline_seconds`.
    #[serde(rename = "retry_seconds")]
    pub retry: Seconds,
}

impl Default for LeaseSettings {
    fn default() -> Self {
        LeaseSettings {
            name: String::new(),
            duration: defaults::LEASE_DURATION,
            renew_deadline: defaults::LEASE_RENEW_DEADLINE,
            retry: defaults::LEASE_RETRY,
        }
    }
}
