//! Sources of backends beside Kubernetes: DNS and directories of files.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use tidegate_types::Seconds;

use crate::defaults;

/// `[backends.dns]`: each address of a name is a backend, named `NAME-ADDRESS`, or `NAME-ADDRESS-PORT` by SRV
/// records.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsSettings {
    /// Host name, for example of a headless Service; its A and AAAA records are used. With `srv` the name of
    /// a service, `_http._tcp.vllm.llm.svc.cluster.local`.
    pub name: String,
    /// Port of the engine; unused with `srv`.
    pub port: u16,
    /// Use SRV records for hosts and ports; they are queried over TCP.
    pub srv: bool,
    /// Name server for SRV records; absent: those of /etc/resolv.conf.
    pub server: Option<SocketAddr>,
    /// Interval of resolution.
    #[serde(rename = "refresh_seconds")]
    pub refresh: Seconds,
}

impl Default for DnsSettings {
    fn default() -> Self {
        DnsSettings {
            name: String::new(),
            port: defaults::ENGINE_PORT,
            srv: false,
            server: None,
            refresh: defaults::DNS_REFRESH,
        }
    }
}

/// `[backends.directory]`: each `*.toml` file of a directory holds `[[backends]]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DirectorySettings {
    /// The directory; a mounted ConfigMap, or files that are replaced by renaming.
    pub path: PathBuf,
}
