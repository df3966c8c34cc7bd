//! Sources of backends beside Kubernetes: DNS and directories of files.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tidegate_types::Seconds;

use crate::defaults;

/// `[backends.dns]`: each address of a name is a backend, named `NAME-ADDRESS`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsSettings {
    /// Host name, for example of a headless Service; its A and AAAA records are used.
    pub name: String,
    /// Port of the engine.
    pub port: u16,
    /// Interval of resolution.
    #[serde(rename = "refresh_seconds")]
    pub refresh: Seconds,
}

impl Default for DnsSettings {
    fn default() -> Self {
        DnsSettings {
            name: String::new(),
            port: defaults::ENGINE_PORT,
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
