//! Pods of the InferencePool to which a sidecar may send prefills: its allow-list.

use std::collections::HashSet;
use std::sync::Arc;
use tidegate_kubernetes::access::{Access, AccessError};
use tidegate_kubernetes::source::PodSource;
use tidegate_settings::{BackendSettings, PodSettings, Settings};
use tokio::sync::watch;

use crate::dispatch::context::Proxy;

/// The pods to follow.
pub struct PoolPods(PodSource);

impl PoolPods {
    /// `None` without `sidecar.inference_pool`.
    ///
    /// # Errors
    /// [`AccessError`] without an API server.
    pub fn new(settings: &Settings) -> Result<Option<PoolPods>, AccessError> {
        let pool = settings.sidecar.as_ref().and_then(|sidecar| sidecar.inference_pool.as_ref());
        let Some(pool) = pool else { return Ok(None) };
        let (namespace, name) = match pool.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, pool.as_str()),
        };
        let inference_pool = Some(name.to_owned());
        let rules = PodSettings { namespace, inference_pool, ..PodSettings::default() };
        let access = Access::of_process(&settings.kubernetes)?;
        Ok(Some(PoolPods(PodSource::new(access, BackendSettings::default(), rules))))
    }

    /// Keeps the allow-list up to date while the proxy runs.
    pub async fn run(self, proxy: Arc<Proxy>) {
        let (sender, mut pods) = watch::channel(None);
        let following = self.0.run(sender);
        let applying = async {
            while pods.changed().await.is_ok() {
                let allowed = pods.borrow_and_update().as_deref().map(hosts);
                if let (Some(sidecar), Some(allowed)) = (&proxy.sidecar, allowed) {
                    tracing::info!(targets = allowed.len(), "prefill targets of the InferencePool");
                    sidecar.set_pods(allowed);
                }
            }
        };
        tokio::join!(following, applying);
    }
}

/// `host:port` of each pod.
fn hosts(pods: &[BackendSettings]) -> HashSet<String> {
    let host = |pod: &BackendSettings| pod.url.trim_start_matches("http://").to_owned();
    pods.iter().map(host).collect()
}
