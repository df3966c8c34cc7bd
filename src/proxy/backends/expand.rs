//! `expand = true`: at start-up, a backend is replaced by one backend for each address of its host name.

use std::collections::BTreeSet;
use std::net::{IpAddr, ToSocketAddrs};
use tidegate_settings::{BackendSettings, Settings};

use crate::upstream::Address;

/// Replaces each backend with `expand` by one backend per address. A backend whose name does not resolve
/// is kept unchanged, so that the start does not fail.
pub fn expand(settings: &mut Settings) {
    expand_with(settings, |address| {
        let found = (address.host.as_str(), address.port).to_socket_addrs();
        found.map(|found| found.map(|address| address.ip()).collect())
    });
}

fn expand_with(
    settings: &mut Settings,
    resolve: impl Fn(&Address) -> std::io::Result<BTreeSet<IpAddr>>,
) {
    let mut names: BTreeSet<String> = settings.backends.iter().map(|b| b.name.clone()).collect();
    let mut expanded = Vec::with_capacity(settings.backends.len());
    for backend in std::mem::take(&mut settings.backends) {
        let address = Address::parse(&backend.url).ok().filter(|_| backend.expand);
        let Some(address) = address else {
            expanded.push(backend);
            continue;
        };
        match resolve(&address) {
            Ok(found) if !found.is_empty() => {
                tracing::info!(backend = %backend.name, addresses = found.len(), "backend is expanded to its addresses");
                for ip in found {
                    expanded.push(one(&backend, &address, ip, &mut names));
                }
            }
            Ok(_) => {
                tracing::warn!(backend = %backend.name, "host name has no address: backend not expanded");
                expanded.push(backend);
            }
            Err(error) => {
                tracing::warn!(backend = %backend.name, "host name cannot be resolved: backend not expanded: {error}");
                expanded.push(backend);
            }
        }
    }
    settings.backends = expanded;
}

/// With TLS the certificate is still verified against the name.
fn one(
    backend: &BackendSettings,
    address: &Address,
    ip: IpAddr,
    names: &mut BTreeSet<String>,
) -> BackendSettings {
    let free = |n: &usize| !names.contains(&format!("{}-{n}", backend.name));
    let number = (1..).find(free).unwrap_or(1);
    let made = made(backend, address, ip, number);
    names.insert(made.name.clone());
    made
}

/// The backend of one address with this number.
fn made(
    backend: &BackendSettings,
    address: &Address,
    ip: IpAddr,
    number: usize,
) -> BackendSettings {
    let name = format!("{}-{number}", backend.name);
    let host = match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let there = |url: &String| {
        let inside = format!("//{}:", address.authority.host());
        url.replacen(&inside, &format!("//{host}:"), 1)
    };
    let url = match address.tls {
        true => backend.url.clone(),
        false => format!("http://{host}:{}{}", address.port, address.prefix),
    };
    BackendSettings {
        name,
        url,
        ip: Some(ip),
        kv_events: backend.kv_events.as_ref().map(there),
        kv_replay: backend.kv_replay.as_ref().map(there),
        ..backend.clone()
    }
}

/// Returns whether `one` is an address of `entry`, which has `expand`: all other keys are equal.
pub fn is_made_of(one: &BackendSettings, entry: &BackendSettings) -> bool {
    let number = one.name.strip_prefix(&entry.name).and_then(|rest| rest.strip_prefix('-'));
    let Some(number) = number.and_then(|number| number.parse().ok()) else { return false };
    let (Ok(address), Some(ip)) = (Address::parse(&entry.url), one.ip) else { return false };
    made(entry, &address, ip, number) == *one
}

/// Replaces each entry with `expand` that was not resolved by the backends in force that were made of
/// it, if there are any: their addresses count as those of the name.
pub fn as_in_force(
    wanted: Vec<BackendSettings>,
    in_force: &[BackendSettings],
) -> Vec<BackendSettings> {
    let mut all = Vec::with_capacity(wanted.len());
    for backend in wanted {
        let is_made = |one: &&BackendSettings| backend.expand && is_made_of(one, &backend);
        let made: Vec<&BackendSettings> = in_force.iter().filter(is_made).collect();
        match made.is_empty() {
            true => all.push(backend),
            false => all.extend(made.into_iter().cloned()),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(url: &str, found: &[&str]) -> Vec<BackendSettings> {
        let backend = |name: &str, expand| BackendSettings {
            name: name.into(),
            url: url.into(),
            expand,
            kv_events: Some("tcp://engines:5557".into()),
            ..BackendSettings::default()
        };
        let backends = vec![backend("e", true), backend("e-1", false)];
        let mut settings = Settings { backends, ..Settings::default() };
        let found: BTreeSet<IpAddr> = found.iter().map(|ip| ip.parse().unwrap()).collect();
        expand_with(&mut settings, |_| Ok(found.clone()));
        settings.backends
    }

    #[test]
    fn every_address_is_a_backend_in_the_order_of_the_addresses() {
        let all = expanded("http://engines:8000/a", &["10.0.0.9", "10.0.0.2", "fd00::1"]);
        let seen: Vec<_> = all.iter().map(|one| (one.name.as_str(), one.url.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("e-2", "http://10.0.0.2:8000/a"),
                ("e-3", "http://10.0.0.9:8000/a"),
                ("e-4", "http://[fd00::1]:8000/a"),
                ("e-1", "http://engines:8000/a"),
            ]
        );
        assert_eq!(all[0].kv_events.as_deref(), Some("tcp://10.0.0.2:5557"));
        let entry = BackendSettings {
            name: "e".into(),
            url: "http://engines:8000/a".into(),
            expand: true,
            kv_events: Some("tcp://engines:5557".into()),
            ..BackendSettings::default()
        };
        let made: Vec<bool> = all.iter().map(|one| is_made_of(one, &entry)).collect();
        assert_eq!(made, [true, true, true, false]);
        assert_eq!(as_in_force(vec![entry.clone()], &all), all[..3], "unresolved: the known ones");
        assert_eq!(as_in_force(vec![entry.clone()], &[]), std::slice::from_ref(&entry), "unknown");
        let changed = BackendSettings { streams_max: 1, ..entry };
        assert!(!is_made_of(&all[0], &changed));
        let tls = expanded("https://engines", &["10.0.0.9"]);
        assert_eq!((tls[0].url.as_str(), tls[0].ip), ("https://engines", "10.0.0.9".parse().ok()));
    }

    #[test]
    fn a_name_without_an_address_stays_one_backend() {
        let all = expanded("http://engines:8000", &[]);
        assert_eq!((all.len(), all[0].name.as_str(), all[0].ip), (2, "e", None));
    }
}
