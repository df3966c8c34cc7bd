//! Sidecar mode for llm-d's hand-offs: reads the prefill target that a gateway names and checks it
//! against the allow list.

use arc_swap::ArcSwapOption;
use dashmap::DashMap;
use http::header::HeaderMap;
use ipnet::IpNet;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use tidegate_engine::ApiError;
use tidegate_filters::{HandoffHost, remove_handoff_headers};
use tidegate_settings::{Settings, SidecarSettings};
use tidegate_types::Seconds;

use crate::runtime::clock::Clock;
use crate::upstream::{Address, Pool, PoolParams};

/// Header with the prefill target `host:port`; several are separated by commas or in several lines.
const PREFILLER: &str = "x-prefiller-host-port";
/// Most prefill targets whose connections are kept.
const POOLS_MAX: usize = 1024;

/// Allow list of prefill targets.
struct Allowed {
    /// Every target is allowed: no list is configured.
    any: bool,
    hosts: Vec<HandoffHost>,
    /// `host:port` of the pods of an InferencePool; `None` until they are known.
    pods: ArcSwapOption<HashSet<String>>,
}

/// The sidecar's settings, and connections to the prefill targets.
pub struct Sidecar {
    trusted: Vec<IpNet>,
    allowed: Allowed,
    sampling: bool,
    /// Further attempts of a prefill.
    pub retries: u32,
    /// Delay before each further attempt.
    pub backoff: Seconds,
    pools: DashMap<String, Arc<Pool>>,
    params: PoolParams,
    clock: Clock,
}

impl Sidecar {
    /// Creates the sidecar mode; `None` without `[sidecar]`.
    pub fn new(settings: &Settings, params: PoolParams, clock: Clock) -> Option<Sidecar> {
        let SidecarSettings {
            trusted_peers,
            prefill_hosts,
            inference_pool,
            prefill_sampling,
            prefill_retries,
            prefill_retry_backoff,
        } = settings.sidecar.as_ref()?;
        let network = |text: &String| {
            let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
            text.parse().ok().or_else(address)
        };
        let hosts = prefill_hosts.iter().filter_map(|host| HandoffHost::parse(host)).collect();
        let any = inference_pool.is_none() && prefill_hosts.is_empty();
        let allowed = Allowed { any, hosts, pods: ArcSwapOption::empty() };
        Some(Sidecar {
            trusted: trusted_peers.iter().filter_map(network).collect(),
            allowed,
            sampling: *prefill_sampling,
            retries: *prefill_retries,
            backoff: *prefill_retry_backoff,
            pools: DashMap::new(),
            params,
            clock,
        })
    }

    /// Takes the prefill target out of the headers, and removes the gateways' own headers.
    ///
    /// # Errors
    /// 403 for a target that is not allowed, 400 for one that is no address.
    pub fn take_target(
        &self,
        peer: IpAddr,
        headers: &mut HeaderMap,
    ) -> Result<Option<Arc<Pool>>, ApiError> {
        let peer = peer.to_canonical();
        let trusted = self.trusted.iter().any(|network| network.contains(&peer));
        let target = if trusted { self.named(headers) } else { None };
        remove_handoff_headers(headers);
        target.map(|target| self.target(&target)).transpose()
    }

    /// Returns the target named by the headers: the first, or a random one.
    fn named(&self, headers: &HeaderMap) -> Option<String> {
        let lines = headers.get_all(PREFILLER).iter().filter_map(|line| line.to_str().ok());
        let targets = lines.flat_map(|line| line.split(','));
        let targets: Vec<&str> =
            targets.map(str::trim).filter(|target| !target.is_empty()).collect();
        let chosen = if self.sampling { fastrand::usize(..targets.len().max(1)) } else { 0 };
        let target = targets.get(chosen)?;
        Some(target.strip_prefix("http://").unwrap_or(target).to_owned())
    }

    fn target(&self, target: &str) -> Result<Arc<Pool>, ApiError> {
        let address = Address::parse(&format!("http://{target}"))
            .ok()
            .filter(|address| address.prefix.is_empty() && !target.contains('@'))
            .ok_or_else(|| {
                let message = format!("{PREFILLER} is not host:port.");
                ApiError::bad_request(message, None)
            })?;
        if !self.allows(target, &address.host) {
            tracing::warn!(target, "a prefill target is not allowed");
            return Err(ApiError::prefill_not_allowed());
        }
        if let Some(pool) = self.pools.get(target) {
            return Ok(Arc::clone(&pool));
        }
        if self.pools.len() >= POOLS_MAX {
            // Removes the pools of deleted pods; those in use are created again.
            self.pools.clear();
        }
        let pool = Arc::new(Pool::new(address, self.params, None, self.clock));
        let kept = self.pools.entry(target.to_owned()).or_insert(pool);
        Ok(Arc::clone(&kept))
    }

    fn allows(&self, target: &str, host: &str) -> bool {
        let Allowed { any, hosts, pods } = &self.allowed;
        *any || hosts.iter().any(|entry| entry.has(host))
            || pods.load().as_ref().is_some_and(|pods| pods.contains(target))
    }

    /// Replaces the pods of the InferencePool, as `host:port`.
    pub fn set_pods(&self, pods: HashSet<String>) {
        self.allowed.pods.store(Some(Arc::new(pods)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn sidecar(more: SidecarSettings) -> Sidecar {
        let trusted_peers = vec!["10.0.0.0/8".into(), "::1".into()];
        let settings = Settings {
            sidecar: Some(SidecarSettings { trusted_peers, ..more }),
            ..Settings::default()
        };
        let second = Seconds(1.0);
        let params = PoolParams {
            idle_max: 1,
            idle_time: second,
            connect_timeout: second,
            first_byte_timeout: second,
        };
        Sidecar::new(&settings, params, Clock::start()).unwrap()
    }

    /// Returns the target of a header from this peer, or the status of the refusal.
    fn target(
        sidecar: &Sidecar,
        peer: &str,
        values: &[&'static str],
    ) -> Result<Option<String>, u16> {
        let mut headers = HeaderMap::new();
        headers.insert("x-llm-d-inference-objective", HeaderValue::from_static("p"));
        headers.insert("x-custom", HeaderValue::from_static("kept"));
        for value in values {
            headers.append(PREFILLER, HeaderValue::from_static(value));
        }
        let target = sidecar.take_target(peer.parse().unwrap(), &mut headers);
        assert_eq!(headers.len(), 1, "only x-custom reaches the engine: {headers:?}");
        let address = |pool: Arc<Pool>| pool.address().authority.to_string();
        target.map(|pool| pool.map(address)).map_err(|error| error.status)
    }

    #[test]
    fn only_a_trusted_peer_names_a_target() {
        let sidecar = sidecar(SidecarSettings::default());
        let named = Ok(Some("10.1.0.1:8000".to_owned()));
        assert_eq!(target(&sidecar, "10.9.9.9", &["10.1.0.1:8000"]), named);
        assert_eq!(target(&sidecar, "::ffff:10.9.9.9", &["10.1.0.1:8000"]), named);
        assert_eq!(target(&sidecar, "::1", &["http://10.1.0.1:8000"]), named);
        assert_eq!(target(&sidecar, "192.168.0.1", &["10.1.0.1:8000"]), Ok(None));
        assert_eq!(target(&sidecar, "10.9.9.9", &[]), Ok(None));
        assert_eq!(target(&sidecar, "10.9.9.9", &[" , "]), Ok(None));
        for wrong in ["10.1.0.1:8000/admin", "a@10.1.0.1:8000", "http://[", "x?y"] {
            assert_eq!(target(&sidecar, "10.9.9.9", &[wrong]), Err(400), "{wrong}");
        }
    }

    #[test]
    fn of_several_targets_the_first_or_any_is_taken() {
        let first = sidecar(SidecarSettings::default());
        let named = |sidecar: &Sidecar, values: &[&'static str]| {
            target(sidecar, "10.9.9.9", values).unwrap().unwrap()
        };
        assert_eq!(named(&first, &["10.1.0.1:1, 10.1.0.2:2"]), "10.1.0.1:1");
        assert_eq!(named(&first, &["10.1.0.1:1", "10.1.0.2:2"]), "10.1.0.1:1");
        let any = sidecar(SidecarSettings { prefill_sampling: true, ..SidecarSettings::default() });
        let seen: HashSet<String> = (0..200).map(|_| named(&any, &["a:1,b:2"])).collect();
        assert_eq!(seen.len(), 2, "{seen:?}");
    }

    #[test]
    fn targets_outside_the_allow_list_get_403() {
        let hosts = vec!["10.1.0.0/16".into(), "prefill-0".into()];
        let listed =
            sidecar(SidecarSettings { prefill_hosts: hosts, ..SidecarSettings::default() });
        assert!(target(&listed, "10.9.9.9", &["10.1.0.1:8000"]).is_ok());
        assert!(target(&listed, "10.9.9.9", &["prefill-0:8000"]).is_ok());
        assert_eq!(target(&listed, "10.9.9.9", &["169.254.169.254:80"]), Err(403));
        let pool = Some("p".into());
        let of_pool =
            sidecar(SidecarSettings { inference_pool: pool, ..SidecarSettings::default() });
        assert_eq!(target(&of_pool, "10.9.9.9", &["10.1.0.1:8000"]), Err(403), "not known yet");
        of_pool.set_pods(HashSet::from(["10.1.0.1:8000".to_owned()]));
        assert!(target(&of_pool, "10.9.9.9", &["10.1.0.1:8000"]).is_ok());
        assert_eq!(target(&of_pool, "10.9.9.9", &["10.1.0.1:22"]), Err(403));
    }
}
