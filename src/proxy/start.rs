//! From settings to a running proxy: every part is built and wired here, once. Files named in the
//! settings are read here and nowhere else.

use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use thiserror::Error;
use tidegate_cost::{ByteEstimator, OutputEstimate, PrefixIndex};
use tidegate_filters::{
    ApiKey, Chain, ChainParams, HandoffHost, HandoffTrust, ModelTokenizer, TokenizerError,
};
use tidegate_planner::{BackendObservation, Observation, initial};
use tidegate_settings::{BackendSettings, ModelSettings, Settings};
use tidegate_terms::{BackendId, Plan, Role, Seconds, Tokens};
use tokio::sync::{Notify, mpsc};

use crate::bootstrap::Bootstrap;
use crate::checkup;
use crate::clock::Clock;
use crate::control::background::{Background, Tasks};
use crate::control::by_hand::ByHand;
use crate::control::fitness::{self, Fitness};
use crate::control::{Catalog, Command, Control, Inboxes, KnownModel, Pace, Priors};
use crate::dispatcher::Dispatcher;
use crate::fleet::{
    Backend, Entry, Estimates, Fleet, HealthParams, KvCapacity, OutlierParams, RoutingTable,
};
use crate::journal::Journal;
use crate::learn::OBSERVATIONS_MAX;
use crate::metrics::Metrics;
use crate::probe::ProbeParams;
use crate::queue::Queue;
use crate::recording::Recording;
use crate::service::Proxy;
use crate::signals::Signals;
use crate::upstream::{Address, AddressError, Pool, PoolParams, TlsError, client_config};

/// Why a proxy cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A backend's address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A file that the settings name.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The planner's recording.
    #[error("cannot write {path}: {source}")]
    Record {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key file with nothing in it: its key would let everybody in who sends an empty one.
    #[error("{path} holds no key: the file of {name} is empty")]
    EmptyKey {
        /// Which file.
        path: PathBuf,
        /// Whose key.
        name: String,
    },
    /// A key that no header can carry.
    #[error("the api_key of backend {name} cannot be sent: a header carries visible ASCII alone")]
    UnusableKey {
        /// Whose.
        name: String,
    },
    /// TLS to backends.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS to clients.
    #[error("TLS for clients: {0}")]
    ServerTls(String),
    /// Engines that are not what the settings say.
    #[error("engines contradict the settings:\n{0}")]
    Misfits(String),
    /// Metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// A port.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A proxy that is built but does not listen yet.
pub struct Built {
    /// What requests share.
    pub proxy: Arc<Proxy>,
    /// What runs beside them.
    pub background: Background,
    /// The way to the control loop.
    pub commands: mpsc::Sender<Command>,
}

/// Build a proxy from valid settings.
///
/// # Errors
/// [`StartError`] when a file cannot be read or used, or an address is none.
pub fn build(settings: &Settings) -> Result<Built, StartError> {
    let clock = Clock::start();
    let by_hand = ByHand::read(settings.admin.state_file.as_deref())?;
    let mut settings = settings.clone();
    by_hand.apply(&mut settings);
    let settings = &settings;
    let backends = backends(settings, clock)?;
    let said = checkup::said(settings);
    let told = checkup::ask_all(settings, &backends, pools(settings, clock)?);
    checkup::check(settings, &said, &told)?;
    let priors: Vec<Priors> = settings
        .backends
        .iter()
        .map(|backend| Priors { prefill: backend.prefill_prior, decode: backend.decode_prior })
        .collect();
    let pins: Vec<Option<Role>> =
        settings.backends.iter().map(|b| b.role.filter(|_| b.pin)).collect();
    let named = settings.backends.iter().map(|backend| backend.models.clone()).collect();
    let catalog = Catalog::new(named, known_models(settings)?);
    let table = first_table(settings, &backends, &priors, &pins, &catalog);
    let metrics = Metrics::new(&backends)?;
    let estimates =
        Estimates { output: OutputEstimate::new(OUTPUT_PRIOR), bytes: ByteEstimator::new() };
    let prefixes = PrefixIndex::new(settings.prefix.lines);
    for backend in &backends {
        let tokens = backend.kv_capacity().get() / PREFIX_SHARE;
        prefixes.set_capacity(backend.id, tokens / settings.prefix.block_tokens as u64);
    }
    let fleet = Fleet::new(backends.clone(), table, estimates, prefixes, settings.slo());
    let mut fitness = Fitness::new(said, told);
    fitness::first(&mut fitness, &fleet);
    let (queue, inbox) = Queue::new(settings.queue.requests_max);
    let (observations, observed) = mpsc::channel(OBSERVATIONS_MAX);
    let (found, findings) = mpsc::channel(INBOX_MAX);
    let (commands, commanded) = mpsc::channel(INBOX_MAX);
    let proxy = Arc::new(Proxy {
        clock,
        heartbeat: crate::heartbeat::Heartbeat::default(),
        fleet,
        chain: Chain::new(chain_params(settings)?),
        directory: ArcSwap::from_pointee(catalog.directory()),
        models: ArcSwap::from_pointee(catalog.answer()),
        placement: settings.placement_params(),
        queue,
        reaction: crate::reaction::Reaction::default(),
        surge: Notify::new(),
        signals: Signals::new(settings, &metrics),
        metrics,
        journal: Journal::default(),
        body_max: settings.server.body_max_bytes,
        queue_deadline: settings.queue.deadline,
        attempts_max: settings.retry.attempts,
        handoff_max: settings.queue.handoff,
        silence_max: settings.upstream.silence,
        ejected_share_max: settings.outlier_ejection.pool_share_max,
        hedge_after: settings.retry.hedge,
        hedges: crate::hedge::Hedges::default(),
        shapes: crate::shapes::Shapes::default(),
        keepalive_comment: settings.server.keepalive_comment_interval(),
        half_close: settings.server.half_close,
        client_stall: settings.server.client_stall,
        prefix_block: Tokens(settings.prefix.block_tokens as u64),
        draining: AtomicBool::new(false),
        observations,
        requests: AtomicU64::new(0),
    });
    let inboxes = Inboxes { observations: observed, found: findings, commands: commanded };
    let pace = Pace { interval: settings.planner.interval, gap: SHORTEST_PLAN_GAP };
    let control = Control::new(
        Arc::clone(&proxy),
        inboxes,
        pace,
        settings.planner.enabled,
        settings.planner_params(),
        pins,
        priors,
        catalog,
        recording(settings)?,
        fitness,
        by_hand,
    );
    let background = Background::new(Tasks {
        proxy: Arc::clone(&proxy),
        dispatcher: Dispatcher::new(Arc::clone(&proxy), inbox),
        control,
        backends,
        probe: ProbeParams { interval: settings.probe.interval, timeout: settings.probe.timeout },
        found,
    });
    Ok(Built { proxy, background, commands })
}

fn recording(settings: &Settings) -> Result<Recording, StartError> {
    let Some(path) = &settings.planner.record else { return Ok(Recording::default()) };
    Recording::begin(path, &settings.planner_params())
        .map_err(|source| StartError::Record { path: path.clone(), source })
}

/// Output tokens to expect before any answer was seen.
const OUTPUT_PRIOR: Tokens = Tokens(256);
/// A backend's prefix cache has what its streams leave of the KV memory: half of it, say. Its own
/// evictions are not seen here, and a hit that is none costs more than a miss that is one.
const PREFIX_SHARE: u64 = 2;
/// Commands and findings are rare.
const INBOX_MAX: usize = 64;
/// Between two runs of the planner, however many requests arrive: a plan takes some ten
/// microseconds, so this leaves the core to the requests.
const SHORTEST_PLAN_GAP: Seconds = Seconds(0.002);

fn pool_params(settings: &Settings) -> PoolParams {
    PoolParams {
        idle_max: settings.upstream.idle_per_backend_max,
        idle_time: settings.upstream.idle,
        connect_timeout: settings.upstream.connect_timeout,
        first_byte_timeout: settings.upstream.first_byte_timeout,
    }
}

/// A pool for each backend.
fn pools(settings: &Settings, clock: Clock) -> Result<Vec<Pool>, StartError> {
    let params = pool_params(settings);
    let pool = |backend: &BackendSettings| {
        let address = Address::parse(&backend.url)?;
        let address = with_key(address, backend)?;
        let tls = match address.tls {
            true => Some(client_config(settings.upstream.ca_file.as_deref())?),
            false => None,
        };
        Ok(Pool::new(address, params, tls, clock))
    };
    settings.backends.iter().map(pool).collect()
}

/// The address with the engine's own key, if it has one.
fn with_key(address: Address, backend: &BackendSettings) -> Result<Address, StartError> {
    let key = match (&backend.api_key, &backend.api_key_file) {
        (Some(key), _) => key.0.clone(),
        (None, Some(path)) => key_in(path, || format!("backend {}", backend.name))?,
        (None, None) => return Ok(address),
    };
    address.with_key(&key).ok_or_else(|| StartError::UnusableKey { name: backend.name.clone() })
}

fn backends(settings: &Settings, clock: Clock) -> Result<Vec<Arc<Backend>>, StartError> {
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
    let groups = settings.groups();
    let mut backends = Vec::with_capacity(settings.backends.len());
    let pools = pools(settings, clock)?;
    for (slot, (backend, pool)) in settings.backends.iter().zip(pools).enumerate() {
        let (family, port) = (backend.family(), backend.meeting_port());
        let bootstrap = Bootstrap::new(family, || {
            let host = pool.address().authority.host();
            let beside = Address::parse(&format!("http://{host}:{port}"))?;
            Ok::<_, StartError>(Pool::new(beside, pool_params(settings), None, clock))
        })?;
        let key = match (&backend.disagg_key, &backend.disagg_key_file) {
            (Some(key), _) => Some(key.0.clone()),
            (None, Some(path)) => Some(key_in(path, || format!("backend {}", backend.name))?),
            (None, None) => None,
        };
        backends.push(Arc::new(Backend::new(
            BackendId(slot as u16),
            backend.name.as_str().into(),
            groups[slot],
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
            key.map(|key| key.into_bytes().into()),
            pool,
            health,
        )));
    }
    Ok(backends)
}

/// The table before anything was heard from an engine: the planner's first roles, or the
/// operator's; models as far as the settings name them.
fn first_table(
    settings: &Settings,
    backends: &[Arc<Backend>],
    priors: &[Priors],
    pins: &[Option<Role>],
    catalog: &Catalog,
) -> RoutingTable {
    let observed = backends.iter().zip(priors).zip(pins).map(|((backend, priors), pinned)| {
        BackendObservation {
            id: backend.id,
            group: backend.group,
            allowed: backend.allowed,
            capability: backend.capability,
            pinned: *pinned,
            usable: true,
            role: Role::Draining,
            becoming: None,
            prefill: Seconds::ZERO,
            streams: 0,
            streams_max: backend.streams_max,
            kv: Tokens::ZERO,
            kv_capacity: backend.kv_capacity(),
            prefill_model: priors.prefill,
            decode_model: priors.decode,
        }
    });
    let observation = Observation { backends: observed.collect(), groups: Vec::new() };
    let mut roles = initial(&settings.planner_params(), &observation);
    for (role, said) in roles.iter_mut().zip(&settings.backends) {
        *role = said.role.unwrap_or(*role);
    }
    let entries = backends.iter().zip(priors).map(|(backend, priors)| Entry {
        role: roles[backend.id.index()],
        usable: true,
        group: backend.group,
        prefill: priors.prefill,
        decode: priors.decode,
    });
    let mut table = RoutingTable {
        entries: entries.collect(),
        plan: Plan::first(roles),
        pools: Vec::new(),
        models: HashMap::new(),
    };
    catalog.pools(&mut table);
    table.set_mean_costs();
    table
}

fn chain_params(settings: &Settings) -> Result<ChainParams, StartError> {
    let mut keys = Vec::with_capacity(settings.auth.keys.len());
    for key in &settings.auth.keys {
        let secret = match (&key.key, &key.key_file) {
            (Some(key), _) => key.clone(),
            (None, Some(path)) => key_in(path, || format!("auth key {}", key.name))?,
            (None, None) => continue,
        };
        keys.push(ApiKey { name: key.name.clone(), key: secret });
    }
    Ok(ChainParams {
        keys,
        body_max: settings.server.body_max_bytes,
        prefix_block: settings.prefix.block_tokens,
        handoff: handoff_trust(settings),
        ..ChainParams::default()
    })
}

/// Entries that are no host were reported by the validation of the settings.
fn handoff_trust(settings: &Settings) -> HandoffTrust {
    let server = &settings.server;
    match (server.trust_client_handoff, server.handoff_hosts.is_empty()) {
        (false, _) => HandoffTrust::Refuse,
        (true, true) => HandoffTrust::Any,
        (true, false) => {
            let hosts = server.handoff_hosts.iter();
            HandoffTrust::Hosts(hosts.filter_map(|host| HandoffHost::parse(host)).collect())
        }
    }
}

/// What the operator said of models. A tokenizer that tidegate cannot use is no reason not to
/// start: prompts are estimated then, and the log says so.
fn known_models(settings: &Settings) -> Result<Vec<KnownModel>, StartError> {
    let mut known = Vec::with_capacity(settings.models.len());
    for model in &settings.models {
        let tokenizer = match tokenizer(model)? {
            Some(Ok(tokenizer)) => {
                for note in tokenizer.notes() {
                    tracing::warn!(model = %model.name, "{note}");
                }
                Some(Arc::new(tokenizer))
            }
            Some(Err(error)) => {
                tracing::warn!(model = %model.name, "prompts are estimated: {error}");
                None
            }
            None => None,
        };
        let name = model.name.as_str().into();
        known.push(KnownModel { name, max_model_len: model.max_model_len, tokenizer });
    }
    Ok(known)
}

/// The key that a file holds.
fn key_in(path: &Path, whose: impl FnOnce() -> String) -> Result<String, StartError> {
    match text(path)?.trim_start_matches('\u{feff}').trim() {
        "" => Err(StartError::EmptyKey { path: path.to_owned(), name: whose() }),
        key => Ok(key.to_owned()),
    }
}

type Loaded = Result<ModelTokenizer, TokenizerError>;

fn tokenizer(model: &ModelSettings) -> Result<Option<Loaded>, StartError> {
    let Some(path) = &model.tokenizer else { return Ok(None) };
    let tokenizer = bytes(path)?;
    let beside = path.with_file_name("tokenizer_config.json");
    let config = match &model.tokenizer_config {
        Some(path) => Some(bytes(path)?),
        // It may or may not be there.
        None => bytes(&beside).ok(),
    };
    let template = model.chat_template.as_deref().map(text).transpose()?;
    let loaded = ModelTokenizer::load(&tokenizer, config.as_deref(), template.as_deref());
    let cache = usize::from(model.tokenizer_cache_mib) << 20;
    Ok(Some(loaded.map(|loaded| loaded.with_cache(cache))))
}

#[allow(clippy::disallowed_methods, reason = "files that the settings name are read here")]
fn bytes(path: &Path) -> Result<Vec<u8>, StartError> {
    std::fs::read(path).map_err(|source| StartError::Read { path: path.to_owned(), source })
}

fn text(path: &Path) -> Result<String, StartError> {
    let bytes = bytes(path)?;
    String::from_utf8(bytes).map_err(|error| StartError::Read {
        path: path.to_owned(),
        source: std::io::Error::other(error),
    })
}
