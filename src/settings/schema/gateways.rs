//! `[gateways]`: several gateways of one fleet.

use serde::{Deserialize, Serialize};
use tidegate_types::Seconds;

use crate::defaults;

/// `[gateways]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewaySettings {
    /// A Lease in the API server of `[kubernetes]`: its holder plans for all gateways that name it;
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
    /// Interval of renewals and of looks at the Lease; below `renew_deadline_seconds`.
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
