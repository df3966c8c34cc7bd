//! Expands an entry of `[[backends]]` to backends at the addresses that a source lists.

use std::net::IpAddr;

use crate::problem::Problem;
use crate::schema::BackendSettings;
use crate::validate::validate_discovered;

impl BackendSettings {
    /// Returns whether the entry describes discovered backends.
    pub fn is_source(&self) -> bool {
        self.kubernetes.is_some() || self.dns.is_some() || self.directory.is_some()
    }

    /// Returns the backend of this entry at an address. Scheme and path are those of the entry's URL;
    /// `host` is the URL's host. Endpoints of KV events get the address; their port increases with the
    /// data-parallel rank (docs/spec/engine-protocols.md#vllm-kv-events).
    pub fn at(
        &self,
        name: String,
        host: &str,
        ip: IpAddr,
        port: u16,
        rank: usize,
    ) -> BackendSettings {
        let scheme = if self.is_https() { "https" } else { "http" };
        let after = self.url.split_once("://").map_or("", |(_, after)| after);
        let path = after.split_once('/').map_or("", |(_, path)| path).trim_end_matches('/');
        let slash = if path.is_empty() { "" } else { "/" };
        let endpoint = |endpoint: &String| at_rank(endpoint, ip, rank);
        BackendSettings {
            name,
            url: format!("{scheme}://{host}:{port}{slash}{path}"),
            ip: Some(ip),
            kubernetes: None,
            dns: None,
            directory: None,
            kv_events: self.kv_events.as_ref().map(endpoint),
            kv_replay: self.kv_replay.as_ref().map(endpoint),
            ..self.clone()
        }
    }

    /// Returns the problems of a discovered backend, without those of its name and of its
    /// compatibility group.
    pub fn problems(&self) -> Vec<Problem> {
        validate_discovered(self)
    }
}

/// Returns an address as the host of a URL.
pub fn host_of(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// A TCP endpoint at the address; other endpoints stay as they are.
fn at_rank(endpoint: &str, ip: IpAddr, rank: usize) -> String {
    let port = endpoint.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':'));
    match port.and_then(|(_, port)| port.parse::<usize>().ok()) {
        Some(port) => format!("tcp://{}:{}", host_of(ip), port + rank),
        None => endpoint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_has_the_entrys_settings_at_its_own_address() {
        let entry = BackendSettings {
            url: "https://any/base/".into(),
            kv_events: Some("tcp://*:5557".into()),
            kv_replay: Some("ipc:///tmp/replay".into()),
            streams_max: 7,
            ..BackendSettings::default()
        };
        let ip: IpAddr = "fd00::7".parse().unwrap();
        let made = entry.at("a".into(), "engines.example", ip, 8000, 2);
        assert_eq!(made.url, "https://engines.example:8000/base");
        assert_eq!((made.name.as_str(), made.ip, made.streams_max), ("a", Some(ip), 7));
        assert_eq!(made.kv_events.as_deref(), Some("tcp://[fd00::7]:5559"));
        assert_eq!(made.kv_replay.as_deref(), Some("ipc:///tmp/replay"));
        let plain = BackendSettings::default().at("a".into(), &host_of(ip), ip, 80, 0);
        assert_eq!(plain.url, "http://[fd00::7]:80");
        assert!(plain.problems().is_empty(), "{:?}", plain.problems());
    }
}
