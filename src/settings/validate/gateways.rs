//! Checks of `[gateways]`.

use super::Findings;
use crate::schema::{ClientAuth, GatewaySettings, LeaseSettings, Settings};

/// Most gateways in `peers`: each queries all others twice a second.
const PEERS_MAX: usize = 32;

pub(super) fn gateways(settings: &Settings, found: &mut Findings) {
    let gateways = &settings.gateways;
    exchange(gateways, found);
    super::tls("gateways.tls", gateways.tls.as_ref(), found);
    if let Some(kubernetes) = &gateways.kubernetes {
        lease(kubernetes, found);
    }
}

/// Checks the exchange of loads.
fn exchange(gateways: &GatewaySettings, found: &mut Findings) {
    let (listen, peers, kubernetes) = ("gateways.listen", "gateways.peers", "gateways.kubernetes");
    let named = !gateways.peers.is_empty();
    let lease = gateways.kubernetes.is_some();
    let listens = gateways.listen.is_some();
    let needed = "the address at which the others reach this one, \"0.0.0.0:9091\"";
    found.check_with(listens || !named, listen, &[peers], "is missing", needed);
    let with = [peers, kubernetes];
    let hint = "peers, or [gateways.kubernetes]";
    found.check_with(!listens || named || lease, listen, &with, "needs other gateways", hint);
    found.count(gateways.peers.len() as u64, (0, PEERS_MAX as u64), peers);
    let addresses = gateways.address.iter().map(|url| ("gateways.address".to_owned(), url));
    let at = |i: usize| format!("{peers}[{i}]");
    let all = gateways.peers.iter().enumerate().map(|(i, url)| (at(i), url)).chain(addresses);
    for (path, url) in all {
        let https = url.starts_with("https://");
        let checked = super::check_base_url(url);
        let known = checked.is_ok();
        found.check(known, &path, checked.err().unwrap_or_default(), "http://host:9091");
        let same = !known || https == gateways.tls.is_some();
        let problem = if https { "is https" } else { "is http" };
        let hint = "https with [gateways.tls], otherwise http";
        found.check_with(same, &path, &["gateways.tls"], problem, hint);
    }
    let authorities = gateways.tls.as_ref().is_none_or(|tls| tls.client_ca_file.is_some());
    let path = "gateways.tls.client_ca_file";
    found.check_with(authorities, path, &["gateways.tls"], "is missing", "it verifies gateways");
    let local = gateways.listen.is_none_or(|address| address.ip().is_loopback());
    let certified =
        gateways.tls.as_ref().is_some_and(|tls| tls.client_auth == ClientAuth::Required);
    let trusted = local || certified || gateways.token_file.is_some();
    let with = ["gateways.token_file", "gateways.tls"];
    let hint = "token_file, or [gateways.tls] with client certificates";
    found.check_with(trusted, listen, &with, "accepts any client", hint);
}

fn lease(lease: &LeaseSettings, found: &mut Findings) {
    let at = |key: &str| format!("gateways.kubernetes.{key}");
    if found.required(!lease.name.is_empty(), &at("lease"), "the name of a Lease, \"tidegate\"") {
        let is_name = super::kubernetes::is_name(&lease.name);
        found.check(is_name, &at("lease"), "is not a Kubernetes object name", "a-z, 0-9, - and .");
    }
    let (duration, deadline, retry) =
        (at("duration_seconds"), at("renew_deadline_seconds"), at("retry_seconds"));
    found.positive(lease.duration, &duration);
    found.positive(lease.renew_deadline, &deadline);
    found.positive(lease.retry, &retry);
    let ends = lease.renew_deadline < lease.duration;
    let hint = "otherwise two gateways could lead at once";
    found.check_with(ends, &deadline, &[&duration], "is not below duration_seconds", hint);
    let renews = lease.retry < lease.renew_deadline;
    let hint = "otherwise no renewal could be in time";
    found.check_with(renews, &retry, &[&deadline], "is not below renew_deadline_seconds", hint);
}

#[cfg(test)]
mod tests {
    use crate::Settings;

    fn problems(text: &str) -> Vec<String> {
        let problems = Settings::parse(text).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_lease_ends_for_its_holder_before_it_ends_for_others() {
        let of = |more: &str| {
            problems(&format!(
                "[gateways.kubernetes]\n{more}\n[[backends]]\nname = \"a\"\nurl = \"http://a:1\""
            ))
        };
        assert_eq!(of("lease = \"tidegate\""), Vec::<String>::new());
        for (more, problem) in [
            ("", "lease: is missing"),
            ("lease = \"A\"", "lease: is not a Kubernetes"),
            ("lease = \"a\"\nduration_seconds = 2", "renew_deadline_seconds: is not below"),
            ("lease = \"a\"\nretry_seconds = 2", "retry_seconds: is not below"),
        ] {
            let found = of(more);
            assert!(found.len() == 1 && found[0].contains(problem), "{more}: {found:?}");
        }
    }

    #[test]
    fn an_exchange_of_loads_needs_an_address_a_leader_and_trust() {
        let of = |more: &str| {
            problems(&format!(
                "[gateways]\n{more}\n[[backends]]\nname = \"a\"\nurl = \"http://a:1\""
            ))
        };
        let local = "listen = \"127.0.0.1:1\"\n";
        let open = "listen = \"0.0.0.0:1\"\n";
        let peers = "peers = [\"http://a:1\"]\n";
        let lease = "[gateways.kubernetes]\nlease = \"l\"\n";
        let tls = "[gateways.tls]\ncert = \"c\"\nkey = \"k\"\nclient_ca_file = \"ca\"\n";
        for good in [
            format!("{local}{peers}"),
            format!("{local}{lease}"),
            format!("{open}{peers}token_file = \"t\"\n"),
            format!("{open}peers = [\"https://a:1\"]\n{tls}"),
            lease.to_owned(),
        ] {
            assert_eq!(of(&good), Vec::<String>::new(), "{good}");
        }
        for (more, problem) in [
            (local.to_owned(), "listen: needs other gateways"),
            (peers.to_owned(), "listen: is missing"),
            (format!("{open}{peers}"), "listen: accepts any client"),
            (format!("{local}peers = [\"a:1\"]\n"), "peers[0]: is neither"),
            (format!("{local}peers = [\"https://a:1\"]\n"), "peers[0]: is https"),
            (
                format!(
                    "{local}peers = [\"https://a:1\"]\n[gateways.tls]\ncert = \"c\"\nkey = \"k\"\n"
                ),
                "client_ca_file: is missing",
            ),
        ] {
            let found = of(&more);
            assert!(found.iter().any(|found| found.contains(problem)), "{more}: {found:?}");
        }
    }
}
