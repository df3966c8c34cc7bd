//! Filter: hand-off members in clients' requests. They make an engine connect to an address that
//! the client chooses, so that they are accepted only from another gateway that controls hand-offs
//! (a sidecar).

use crate::service_class::{OBJECTIVE, TPOT, TTFT};
use http::header::HeaderMap;
use ipnet::IpNet;
use std::net::IpAddr;
use tidegate_engine::{ApiError, Scan};

/// Headers by which gateways name engines, priorities and targets: those of llm-d (current and
/// earlier names), of the inference gateway and of AIBrix.
const HEADERS: [&str; 26] = [
    "x-prefiller-host-port",
    "x-prefiller-url",
    "x-encoder-hosts-ports",
    "x-decoder-host-port",
    "x-data-parallel-host-port",
    "x-data-parallel-rank",
    "x-kv-cache-source-host-port",
    "x-speculative-prefill",
    "x-gateway-destination-endpoint",
    "x-gateway-destination-endpoint-subset",
    "x-gateway-destination-endpoint-served",
    "x-gateway-destination-endpoint-scores",
    "x-llm-d-inference-fairness-id",
    "x-gateway-inference-fairness-id",
    OBJECTIVE[0],
    OBJECTIVE[1],
    "x-llm-d-model-name-rewrite",
    "x-gateway-model-name-rewrite",
    TTFT[0],
    TTFT[1],
    TPOT[0],
    TPOT[1],
    "target-pod",
    "target-pod-ip",
    "prefill-target-pod",
    "prefill-target-pod-ip",
];

/// Policy for hand-off members sent by clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HandoffTrust {
    /// None: the request is refused.
    #[default]
    Refuse,
    /// All.
    Any,
    /// Those that name only these hosts.
    Hosts(Vec<HandoffHost>),
}

/// An entry of the allow-list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoffHost {
    /// A network or a single address.
    Net(IpNet),
    /// A host name, compared case-insensitively.
    Name(String),
}

impl HandoffHost {
    /// Parses `10.0.0.0/8`, `10.0.0.7`, `::1` or a name; `None` if invalid.
    pub fn parse(text: &str) -> Option<HandoffHost> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Some(HandoffHost::Net(net));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(HandoffHost::Net(address.into()));
        }
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_name = !text.is_empty() && text.bytes().all(name);
        is_name.then(|| HandoffHost::Name(text.to_ascii_lowercase()))
    }

    /// Returns whether the host, an address or a name without a port, is this entry's.
    pub fn has(&self, host: &str) -> bool {
        match self {
            HandoffHost::Net(net) => host.parse::<IpAddr>().is_ok_and(|host| net.contains(&host)),
            HandoffHost::Name(name) => name.eq_ignore_ascii_case(host),
        }
    }
}

pub(crate) fn check_handoff(
    trust: &HandoffTrust,
    scan: Option<&Scan>,
    body: &[u8],
) -> Result<(), ApiError> {
    let allowed = match trust {
        HandoffTrust::Any => return Ok(()),
        HandoffTrust::Refuse => None,
        HandoffTrust::Hosts(hosts) => Some(hosts),
    };
    let Some(found) = scan.and_then(|scan| scan.foreign_handoff(body)) else { return Ok(()) };
    let Some(allowed) = allowed else {
        let message = format!("{} is not accepted from clients of this gateway.", found.name);
        return Err(ApiError::bad_request(message, found.param()));
    };
    let foreign = found.hosts.iter().find(|host| !allowed.iter().any(|known| known.has(host)));
    match foreign {
        None => Ok(()),
        Some(_) => {
            let message = format!("{} names a host that is not allowed here.", found.name);
            Err(ApiError::bad_request(message, found.param()))
        }
    }
}

/// Removes headers that must not reach an engine, or a sidecar in front of it, from an untrusted
/// client.
pub fn strip_handoff_headers(trust: &HandoffTrust, headers: &mut HeaderMap) {
    if *trust == HandoffTrust::Refuse {
        remove_handoff_headers(headers);
    }
}

/// Removes these headers from a request after they were read, or from an untrusted peer.
pub fn remove_handoff_headers(headers: &mut HeaderMap) {
    // The initials of the list exclude most headers of a request without a search.
    let is_listed = |name: &str| name.starts_with(['x', 't', 'p']) && HEADERS.contains(&name);
    let names = headers.keys().filter(|name| is_listed(name.as_str()));
    // Usually none is found, and nothing is allocated.
    let found: Vec<_> = names.cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_engine::{Endpoint, scan};

    #[test]
    fn every_named_host_must_be_on_the_allow_list() {
        let hosts = ["10.0.0.0/8", "prefill-0.llm", "::1"];
        let hosts: Vec<_> = hosts.iter().map(|host| HandoffHost::parse(host).unwrap()).collect();
        let check = |trust: &HandoffTrust, host: &str| {
            let body = format!(r#"{{"kv_transfer_params":{{"remote_host":"{host}"}}}}"#);
            let scan = scan(Endpoint::ChatCompletions, body.as_bytes()).unwrap();
            check_handoff(trust, Some(&scan), body.as_bytes()).map_err(|error| error.status)
        };
        let list = HandoffTrust::Hosts(hosts);
        for host in ["10.1.2.3", "tcp://10.1.2.3:5", "PREFILL-0.llm", "[::1]:80"] {
            assert_eq!(check(&list, host), Ok(()), "{host}");
        }
        for host in ["169.254.169.254", "11.0.0.1", "evil", "prefill-0.llm.evil"] {
            assert_eq!(check(&list, host), Err(400), "{host}");
        }
        assert_eq!(check(&HandoffTrust::Refuse, "10.1.2.3"), Err(400));
        assert_eq!(check(&HandoffTrust::Any, "evil"), Ok(()));
        assert_eq!(HandoffHost::parse("a b"), None);
    }
}
