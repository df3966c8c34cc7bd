//! Builds backends from settings, at the start and for those that join later.

use std::sync::Arc;
use thiserror::Error;
use tidegate_settings::reconcile::{BadEntry, Reconciler, SourceId};
use tidegate_settings::{BackendSettings, Settings, UpstreamSettings};
use tidegate_types::{BACKENDS_MAX, BackendId, GroupId};

use crate::backends::bootstrap::Bootstrap;
use crate::backends::fleet::{Backend, HealthParams, KvCapacity, OutlierParams};
use crate::control::operator_backends::OperatorBackends;
use crate::process::desired::DesiredBackends;
use crate::process::files::{self, Files};
use crate::runtime::clock::Clock;
use crate::tls::TlsError;
use crate::upstream::{Address, AddressError, EngineTls, Pool, PoolParams};

/// Why a backend cannot be built from its settings.
#[derive(Debug, Error)]
pub enum BackendError {
    /// Its URL is invalid.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An API key that no header can carry.
    #[error("the api_key of backend {name} cannot be sent: a header carries only visible ASCII")]
    UnusableKey { name: String },
    /// TLS towards engines cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

pub(super) fn pool_params(settings: &Settings) -> PoolParams {
    PoolParams {
        idle_max: settings.upstream.idle_per_backend_max,
        idle_time: settings.upstream.idle,
        connect_timeout: settings.upstream.connect_timeout,
        first_byte_timeout: settings.upstream.first_byte_timeout,
    }
}

/// Builds backends and their connection pools from settings.
#[derive(Clone)]
pub(super) struct BackendFactory {
    health: HealthParams,
    pool: PoolParams,
    upstream: UpstreamSettings,
    connector: Option<EngineTls>,
    clock: Clock,
}

impl BackendFactory {
    pub(super) fn new(settings: &Settings, files: &Files, clock: Clock) -> BackendFactory {
        let health = HealthParams {
            failures_to_eject: settings.probe.failures_to_eject,
            slow_return: settings.probe.slow_return,
            outlier: OutlierParams {
                window: settings.outlier_ejection.window,
                requests_min: settings.outlier_ejection.requests_min,
                failure_share: settings.outlier_ejection.failure_share,
                ejection: settings.outlier_ejection.ejection,
                ejection_max: settings.outlier_ejection.ejection_max,
            },
        };
        let (pool, connector) = (pool_params(settings), files.connector.clone());
        BackendFactory { health, pool, upstream: settings.upstream.clone(), connector, clock }
    }

    /// The connection pool of a backend; `key` is the engine's own API key.
    fn pool(&self, backend: &BackendSettings, key: Option<&String>) -> Result<Pool, BackendError> {
        let mut address = Address::parse(&backend.url)?;
        address.ip = backend.ip.or(address.ip);
        let address = with_key(address, backend, key)?;
        let tls = match (address.tls, &self.connector) {
            (false, _) => None,
            (true, Some(tls)) => Some(tls.named(backend.server_name.as_deref())),
            // Loaded by the first https backend, which may join a running fleet.
            (true, None) => {
                let tls = EngineTls::load(&self.upstream).map_err(BackendError::Tls)?;
                Some(tls.named(backend.server_name.as_deref()))
            }
        };
        Ok(Pool::new(address, self.pool, tls, self.clock))
    }

    fn backend(
        &self,
        (id, group): (BackendId, GroupId),
        backend: &BackendSettings,
        key: Option<&String>,
        handoff_key: Option<Box<[u8]>>,
    ) -> Result<Backend, BackendError> {
        let pool = self.pool(backend, key)?;
        let (family, port) = (backend.family(), backend.rendezvous_port());
        let bootstrap = Bootstrap::new(family, || {
            let host = pool.address().authority.host();
            let beside = Address::parse(&format!("http://{host}:{port}"))?;
            Ok::<_, BackendError>(Pool::new(beside, self.pool, None, self.clock))
        })?;
        Ok(Backend::new(
            id,
            backend.name.as_str().into(),
            group,
            backend.kind(),
            family,
            backend.capability(),
            backend.allowed_roles(),
            backend.streams_max,
            KvCapacity {
                tokens: backend.kv_capacity_at_first(),
                is_set: backend.kv_capacity.is_some(),
            },
            port,
            bootstrap,
            handoff_key,
            backend.paths.clone(),
            pool,
            self.health,
        ))
    }

    /// The backend of a running fleet, with the key files that its settings name.
    pub(super) fn joining(
        &self,
        backend: &BackendSettings,
        id: BackendId,
        group: GroupId,
    ) -> Result<Backend, String> {
        let keys = files::backend_keys(backend).map_err(|errors| errors.to_string())?;
        let made = self.backend((id, group), backend, keys.0.as_ref(), keys.1);
        made.map_err(|error| error.to_string())
    }
}

/// Adds the engine's own API key to its address.
fn with_key(
    address: Address,
    backend: &BackendSettings,
    key: Option<&String>,
) -> Result<Address, BackendError> {
    let Some(key) = key else { return Ok(address) };
    address.with_key(key).ok_or_else(|| BackendError::UnusableKey { name: backend.name.clone() })
}

/// Creates a second connection pool for each backend, for another runtime.
pub(super) fn pools(
    settings: &Settings,
    files: &Files,
    factory: &BackendFactory,
) -> Result<Vec<Pool>, BackendError> {
    let keyed = settings.backends.iter().zip(&files.engine_keys);
    keyed.map(|(backend, key)| factory.pool(backend, key.as_ref())).collect()
}

pub(super) fn backends(
    settings: &Settings,
    files: &Files,
    factory: &BackendFactory,
) -> Result<Vec<Arc<Backend>>, BackendError> {
    let keyed = settings.backends.iter().zip(&files.engine_keys).zip(&files.handoff_keys);
    let build = |(slot, (group, ((backend, key), handoff_key)))| {
        let id = BackendId(slot as u16);
        factory.backend((id, group), backend, Option::as_ref(key), Option::clone(handoff_key))
    };
    let grouped = settings.groups().into_iter().zip(keyed);
    grouped.enumerate().map(|it| build(it).map(Arc::new)).collect()
}

/// Returns the backends of the settings file, of the sources, and of the operators' changes from
/// earlier processes.
pub(super) fn desired(
    settings: &mut Settings,
    operator_backends: &OperatorBackends,
    found: Vec<(SourceId, DesiredBackends)>,
) -> Reconciler {
    let mut reconciler = Reconciler::default();
    for (source, wanted) in found {
        let (_, bad) = reconciler.set(source, wanted);
        for BadEntry { name, problem } in bad {
            tracing::error!(?source, backend = name, "backend is not used: {problem}");
        }
    }
    reconciler.set(SourceId::File, settings.backends.iter().cloned().map(Ok).collect());
    reconciler.set(SourceId::Admin, operator_backends.added().into_iter().map(Ok).collect());
    for name in operator_backends.removed() {
        reconciler.hide(name);
    }
    let mut left = reconciler.in_force().clone();
    let in_order = settings.backends.iter().filter_map(|backend| left.remove(&backend.name));
    let mut backends: Vec<BackendSettings> = in_order.collect();
    backends.extend(left.into_values());
    if backends.len() > BACKENDS_MAX {
        let without = backends.split_off(BACKENDS_MAX);
        tracing::error!(
            "all {BACKENDS_MAX} slots for backends are in use: {} are left out",
            without.len()
        );
        without.iter().for_each(|backend| reconciler.failed(&backend.name));
    }
    settings.backends = backends;
    reconciler
}
