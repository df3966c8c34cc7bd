//! Checks of `[sidecar]`.

use super::Findings;
use crate::schema::Settings;

/// Bound of further attempts.
const RETRIES_MAX: u64 = 16;
/// Longest delay before a further attempt, in seconds.
const BACKOFF_MAX: f64 = 60.0;

pub(super) fn sidecar(settings: &Settings, found: &mut Findings) {
    let Some(sidecar) = &settings.sidecar else { return };
    for (i, peer) in sidecar.trusted_peers.iter().enumerate() {
        let path = format!("sidecar.trusted_peers[{i}]");
        found.check(is_network(peer), &path, &format!("{peer:?} is not a network"), "10.0.0.0/8");
    }
    for (i, host) in sidecar.prefill_hosts.iter().enumerate() {
        let path = format!("sidecar.prefill_hosts[{i}]");
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_name = !host.is_empty() && host.bytes().all(plain);
        let good = is_network(host) || is_name;
        found.check(
            good,
            &path,
            &format!("{host:?} is not a host or network"),
            "10.0.0.0/8, or a name",
        );
    }
    if let Some(name) = &sidecar.inference_pool {
        let parts: Vec<&str> = name.split('/').collect();
        let good = parts.len() <= 2 && parts.iter().all(|part| super::kubernetes::is_name(part));
        found.check(
            good,
            "sidecar.inference_pool",
            "is not a Kubernetes object name",
            "NAME or NAMESPACE/NAME",
        );
    }
    found.count(sidecar.prefill_retries.into(), (0, RETRIES_MAX), "sidecar.prefill_retries");
    let backoff = sidecar.prefill_retry_backoff.get();
    found.number(backoff, (0.0, BACKOFF_MAX), "sidecar.prefill_retry_backoff_seconds", " seconds");
}

/// Returns whether this is an IP address or a network in CIDR notation.
pub(super) fn is_network(text: &str) -> bool {
    let (address, length) = text.split_once('/').map_or((text, None), |(a, n)| (a, Some(n)));
    let Ok(address) = address.parse::<std::net::IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= most))
}

#[cfg(test)]
mod tests {
    use crate::Settings;

    #[test]
    fn peers_hosts_and_the_pool_are_checked() {
        let problems = |more: &str| {
            let text =
                format!("[sidecar]\n{more}\n[[backends]]\nname = \"a\"\nurl = \"http://a:1\"\n");
            let problems = Settings::parse(&text).err().unwrap_or_default();
            problems.iter().map(|problem| problem.path.clone()).collect::<Vec<_>>()
        };
        for good in [
            "trusted_peers = [\"10.0.0.0/8\", \"::1\", \"fd00::/8\"]",
            "prefill_hosts = [\"10.0.0.0/8\", \"vllm-0.vllm\"]",
            "inference_pool = \"llm/pool\"",
        ] {
            assert!(problems(good).is_empty(), "{good}");
        }
        assert_eq!(problems("trusted_peers = [\"gateway\"]"), ["sidecar.trusted_peers[0]"]);
        assert_eq!(problems("trusted_peers = [\"10.0.0.0/33\"]"), ["sidecar.trusted_peers[0]"]);
        assert_eq!(problems("prefill_hosts = [\"a b\"]"), ["sidecar.prefill_hosts[0]"]);
        assert_eq!(problems("inference_pool = \"a/b/c\""), ["sidecar.inference_pool"]);
    }
}
