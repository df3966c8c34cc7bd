//! Builds a proxy from settings: constructs and connects every part, once.

use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use thiserror::Error;
use tidegate_scheduler::cost::{PrefixIndex, TransferModel};
use tidegate_scheduler::learn::{Estimates, Priors};
use tidegate_scheduler::planner::{BackendObservation, Observation, initial};
use tidegate_settings::{BackendSettings, Settings};
use tidegate_types::{Moment, Plan, Role, Seconds, Tokens};
use tokio::sync::{Notify, mpsc, watch};

use crate::backends::expand;
use crate::backends::fleet::{Backend, Fleet, Pin, RoutingTable, TableEntry};
use crate::backends::probe::{ProbeParams, ProbeReport};
use crate::backends::startup_verification;
use crate::backends::startup_verification::Misfits;
use crate::control::fitness::{self, Fitness};
use crate::control::operator_backends::OperatorBackends;
use crate::control::operator_roles::OperatorRoles;
use crate::control::pins::Pins;
use crate::control::{
    Catalog, ConfiguredModels, Control, FleetUpdate, Gateways, Inboxes, Leadership, Membership,
    Pace, RoleCommand,
};
use crate::dispatch::context::Proxy;
use crate::dispatch::discovery::ModelDiscovery;
use crate::dispatch::dispatcher::Dispatcher;
use crate::dispatch::queue::Queue;
use crate::dispatch::settings_in_force::{SettingsInForce, SettingsSlot};
use crate::dispatch::sidecar::Sidecar;
use crate::listener::sockets::ListenError;
use crate::process::background::{Background, Tasks};
use crate::process::config_file::ConfigFile;
use crate::process::directories::Directories;
use crate::process::factory::{self, BackendError, BackendFactory};
use crate::process::files::{self, FileErrors, Files, GatewayFiles};
#[cfg(feature = "kubernetes")]
use crate::process::gateway_lease::GatewayLease;
use crate::process::gateways::{self, GatewayList, LoadExchange};
use crate::process::handover::HandOverError;
use crate::process::names::Names;
#[cfg(feature = "kubernetes")]
use crate::process::pods::Pods;
#[cfg(feature = "kubernetes")]
use crate::process::pool_pods::PoolPods;
#[cfg(feature = "kubernetes")]
use crate::process::role_labels::RoleLabels;
use crate::process::sources::Sources;
use crate::runtime::budget::BodyBudget;
use crate::runtime::clock::Clock;
use crate::runtime::connections::Connections;
use crate::runtime::liveness::Liveness;
use crate::runtime::timer_coalescing::TimerCoalescing;
use crate::signals::EngineSignals;
use crate::telemetry::arrivals::ArrivalLog;
use crate::telemetry::control_events::{CONTROL_EVENTS_MAX, ControlEvent};
use crate::telemetry::history::History;
use crate::telemetry::journal::Journal;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::recent::Recent;
use crate::telemetry::recording::Recording;
use crate::tls::ServerTls;

/// Why a proxy cannot start or has ended.
#[derive(Debug, Error)]
pub enum StartError {
    /// A backend cannot be built.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A file in the settings cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The planner's recording cannot be created.
    #[error("cannot write {path}: {source}")]
    Record {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Files in the settings cannot be used.
    #[error("files named in the configuration cannot be used:\n{0}")]
    Files(#[from] FileErrors),
    /// `--upgrade` without a socket to receive the listeners on.
    #[error("serve --upgrade needs [server] upgrade_socket, in both processes' configuration")]
    NoSocket,
    /// The listeners were not received.
    #[error("serve --upgrade: {0}")]
    HandOver(#[from] HandOverError),
    /// `--upgrade` without a running proxy.
    #[error("serve --upgrade: no proxy listens on {addresses}: start without --upgrade")]
    NoPredecessor {
        /// The configured addresses.
        addresses: String,
    },
    /// An essential task ended with a panic.
    #[error("{0} ended with a panic, see the log")]
    Died(&'static str),
    /// Facts of engines contradict the settings (`strict_start`).
    #[error(transparent)]
    Misfits(#[from] Misfits),
    /// The metrics recorder cannot be built.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The API server of Kubernetes has no address.
    #[cfg(feature = "kubernetes")]
    #[error("kubernetes: {0}")]
    Kubernetes(#[from] tidegate_kubernetes::access::AccessError),
    /// Settings that need the API server, in a build without it.
    #[error(
        "sidecar.inference_pool, kubernetes.role_labels, backends.kubernetes and gateways.kubernetes need a tidegate with the feature `kubernetes`"
    )]
    NoKubernetes,
    /// A socket cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// A proxy that is built and does not listen yet.
pub struct BuiltProxy {
    /// State shared by requests.
    pub proxy: Arc<Proxy>,
    /// The background tasks.
    pub background: Background,
    /// Channel to the control loop.
    pub commands: mpsc::Sender<RoleCommand>,
    /// Channel for sources of backends.
    pub fleet_updates: mpsc::Sender<FleetUpdate>,
    /// TLS of the data listeners.
    pub server_tls: Option<ServerTls>,
    /// TLS of the admin listener.
    pub admin_tls: Option<ServerTls>,
    /// The exchange of loads with other gateways.
    pub exchange: Option<Arc<LoadExchange>>,
    /// TLS of the address for other gateways.
    pub gateways_tls: Option<ServerTls>,
}

/// Builds a proxy from valid settings.
///
/// # Errors
/// [`StartError`] when a file cannot be read or used, or a URL is invalid.
pub fn build(settings: &Settings, liveness: &Arc<Liveness>) -> Result<BuiltProxy, StartError> {
    let pool = settings.sidecar.as_ref().and_then(|sidecar| sidecar.inference_pool.as_ref());
    let needs_api = pool.is_some()
        || settings.gateways.kubernetes.is_some()
        || settings.kubernetes.role_labels.is_some()
        || settings.sources.iter().any(|source| source.kubernetes.is_some());
    if needs_api && !cfg!(feature = "kubernetes") {
        return Err(StartError::NoKubernetes);
    }
    let clock = Clock::start();
    let mut settings = settings.clone();
    // Expanded first, because key files are read per backend.
    expand::expand(&mut settings);
    let operator_backends =
        OperatorBackends::read(settings.admin.state_file.as_deref()).map_err(|source| {
            let path = settings.admin.state_file.clone().unwrap_or_default();
            StartError::Read { path, source }
        })?;
    let mut sources = Sources {
        #[cfg(feature = "kubernetes")]
        pods: Pods::new(&settings)?,
        names: Names::new(&settings),
        directories: Directories::new(&settings),
    };
    let values = settings.clone();
    let reconciler = factory::desired(&mut settings, &operator_backends, sources.first());
    let mut files = files::load(&settings)?;
    let operator_roles = std::mem::take(&mut files.operator_roles);
    operator_roles.apply(&mut settings);
    let settings = &settings;
    let Files { models, watched, server_tls, admin_tls, .. } = &files;
    let factory = BackendFactory::new(settings, &files, clock);
    let backends = factory::backends(settings, &files, &factory)?;
    let configured = startup_verification::configured_all(settings);
    let reported = startup_verification::read_all_facts(
        settings,
        &backends,
        factory::pools(settings, &files, &factory)?,
    );
    startup_verification::check(settings, &configured, &reported)?;
    let priors: Vec<Priors> = settings
        .backends
        .iter()
        .map(|backend| Priors { prefill: backend.prefill_prior, decode: backend.decode_prior })
        .collect();
    let pins = pins(settings, &operator_roles, clock);
    let pinned: Vec<Option<Role>> = pins.iter().map(|pin| pin.map(|pin| pin.role)).collect();
    let named = settings.backends.iter().map(ConfiguredModels::of).collect();
    let mut catalog = Catalog::new(named, models.clone());
    let table = first_table(settings, &backends, &priors, &pinned, &mut catalog);
    let metrics = Metrics::new(&backends)?;
    let fleet = fleet(settings, backends.clone(), table);
    let mut fitness = Fitness::new(configured, reported);
    fitness::first(&mut fitness, &fleet);
    let (queue, inbox) = Queue::new();
    let (control_events, events) = mpsc::channel(CONTROL_EVENTS_MAX);
    let (found, findings) = mpsc::channel(INBOX_MAX);
    let (commands, commanded) = mpsc::channel(INBOX_MAX);
    let (fleet_updates, fleet_updated) = mpsc::channel(INBOX_MAX);
    let (revisions, revised) = mpsc::channel(INBOX_MAX);
    let in_force = SettingsInForce::first(values, files.secrets.clone(), clock.wall(Moment::START));
    let parts =
        ContextParts { in_force, fleet, metrics, queue, control_events, found: found.clone() };
    let proxy = Arc::new(context(settings, clock, &catalog, parts));
    proxy.metrics.reloaded(1, true, clock.wall(Moment::START));
    let inboxes = Inboxes {
        control_events: events,
        found: findings,
        commands: commanded,
        revisions: revised,
        fleet: fleet_updated,
    };
    let probe = ProbeParams { interval: settings.probe.interval, timeout: settings.probe.timeout };
    let names = settings.backends.iter().map(BackendSettings::group_name);
    let membership = Membership::new(
        reconciler,
        Box::new(move |backend, id, group| factory.joining(backend, id, group)),
        probe,
        found.clone(),
        operator_backends,
        names.zip(settings.groups()).collect(),
    );
    let identity = gateways::identity();
    let (leadership, _) = watch::channel(Leadership::default());
    #[cfg(feature = "kubernetes")]
    let (gateway_lease, lease) =
        GatewayLease::new(settings, &identity, leadership.clone())?.unzip();
    #[cfg(not(feature = "kubernetes"))]
    let lease = None;
    let (exchange, peers, listed) =
        exchange(settings, &files.gateways, &proxy, identity, leadership);
    let pace = Pace { interval: settings.planner.interval, gap: SHORTEST_PLAN_GAP };
    let control = Control::new(
        Arc::clone(&proxy),
        inboxes,
        pace,
        settings.planner.enabled,
        settings.planner_params(),
        Pins::new(pins),
        priors,
        catalog,
        recording(settings)?,
        fitness,
        operator_roles,
        membership,
        lease.or(listed),
    );
    let background = Background::new(Tasks {
        proxy: Arc::clone(&proxy),
        dispatcher: Dispatcher::new(Arc::clone(&proxy), inbox),
        control,
        backends,
        probe,
        found,
        #[cfg(feature = "kubernetes")]
        pool_pods: PoolPods::new(settings)?,
        #[cfg(feature = "kubernetes")]
        role_labels: RoleLabels::new(settings)?,
        #[cfg(feature = "kubernetes")]
        gateway_lease,
        exchange: exchange.clone(),
        peers,
        config_file: ConfigFile::new(&proxy, revisions, fleet_updates.clone()),
        sources,
        fleet_updates: fleet_updates.clone(),
        watched: watched.clone(),
        guards: [liveness.guard("the control loop"), liveness.guard("the dispatcher")],
    });
    let (server_tls, admin_tls) = (server_tls.clone(), admin_tls.clone());
    let gateways_tls = files.gateways.tls.clone();
    Ok(BuiltProxy {
        proxy,
        background,
        commands,
        fleet_updates,
        server_tls,
        admin_tls,
        exchange,
        gateways_tls,
    })
}

/// The exchange of loads with other gateways, and the static list that names the leader, with its end
/// in the control loop, if no Lease does.
fn exchange(
    settings: &Settings,
    files: &GatewayFiles,
    proxy: &Arc<Proxy>,
    identity: String,
    leadership: watch::Sender<Leadership>,
) -> (Option<Arc<LoadExchange>>, Option<GatewayList>, Option<Gateways>) {
    if settings.gateways.listen.is_none() {
        return (None, None, None);
    }
    let urls = settings.gateways.peers.clone();
    let listed = settings.gateways.kubernetes.is_none().then(|| {
        let (shared, plans) = watch::channel(None);
        (Gateways::new(leadership.subscribe(), shared), plans)
    });
    let (gateways, plans) = listed.unzip();
    let exchange = LoadExchange::new(gateways::ExchangeParts {
        identity,
        proxy: Arc::clone(proxy),
        leadership,
        plans,
        token: files.token.clone(),
        connector: files.connector.clone(),
    });
    let peers = gateways.is_some().then(|| GatewayList { urls, exchange: Arc::clone(&exchange) });
    (Some(exchange), peers, gateways)
}

/// Builds the fleet with its first table and sizes the prefix index by the backends' KV memory.
fn fleet(settings: &Settings, backends: Vec<Arc<Backend>>, table: RoutingTable) -> Fleet {
    let prefixes = PrefixIndex::new(settings.prefix.lines);
    for backend in &backends {
        let block = Tokens(settings.prefix.block_tokens as u64);
        prefixes.set_kv_capacity(backend.id, backend.kv_capacity(), block);
    }
    Fleet::new(backends, table, Estimates::default(), prefixes)
}

/// The parts of the shared state that other parts are built from.
struct ContextParts {
    in_force: SettingsInForce,
    fleet: Fleet,
    metrics: Metrics,
    queue: Queue,
    control_events: mpsc::Sender<ControlEvent>,
    found: mpsc::Sender<ProbeReport>,
}

/// Builds what all requests share.
fn context(settings: &Settings, clock: Clock, catalog: &Catalog, parts: ContextParts) -> Proxy {
    let ContextParts { in_force, fleet, metrics, queue, control_events, found } = parts;
    let bodies = BodyBudget::new(in_force.body_budget);
    Proxy {
        clock,
        timer_coalescing: TimerCoalescing::new(clock),
        fleet,
        settings: SettingsSlot::new(in_force),
        directory: ArcSwap::from_pointee(catalog.directory()),
        models: ArcSwap::from_pointee(catalog.list()),
        discovery: ModelDiscovery::new(found),
        sidecar: Sidecar::new(settings, factory::pool_params(settings), clock),
        queue,
        reaction: crate::telemetry::reaction_time::ReactionTimer::default(),
        surge: Notify::new(),
        signals: EngineSignals::new(settings, &metrics),
        metrics,
        journal: Journal::default(),
        outlook: ArcSwap::default(),
        arrivals: ArrivalLog::default(),
        history: History::default(),
        recent: Recent::new(settings.admin.requests_kept),
        connections: Connections::new(
            settings.server.connections_max,
            settings.server.connections_per_address_max,
        ),
        bodies,
        hedge_limit: crate::dispatch::hedge_limit::HedgeLimit::default(),
        shapes: crate::dispatch::shapes::Shapes::default(),
        prefix_block: Tokens(settings.prefix.block_tokens as u64),
        other_gateways: AtomicUsize::new(0),
        draining: AtomicBool::new(false),
        has_successor: AtomicBool::new(false),
        reload: Notify::new(),
        control_events,
        requests: AtomicU64::new(0),
    }
}

/// Pins from the settings, and holds from the state file that have not ended.
fn pins(settings: &Settings, operator_roles: &OperatorRoles, clock: Clock) -> Vec<Option<Pin>> {
    let began = clock.wall(Moment::START);
    let pin = |backend: &BackendSettings| {
        let role = backend.role?;
        if backend.pin {
            return Some(Pin { role, until: None });
        }
        let left = operator_roles.hold_until(&backend.name)? - began;
        (left > 0.0).then(|| Pin { role, until: Some(Moment::START + Seconds(left)) })
    };
    settings.backends.iter().map(pin).collect()
}

fn recording(settings: &Settings) -> Result<Recording, StartError> {
    if settings.planner.dwell.is_some() {
        tracing::warn!("planner.dwell_seconds is deprecated and has no effect");
    }
    let Some(path) = &settings.planner.record else { return Ok(Recording::default()) };
    Recording::begin(path, &settings.planner_params())
        .map_err(|source| StartError::Record { path: path.clone(), source })
}

/// Capacity of the channels of commands and probe results, which are rare.
const INBOX_MAX: usize = 64;
/// Shortest time between two plans triggered by arrivals. A plan takes some 10 µs, so that planning
/// uses under 1 % of a core.
const SHORTEST_PLAN_GAP: Seconds = Seconds(0.002);

/// The first table, before any engine has reported: roles from the settings or else from the
/// planner, models as far as the settings name them.
fn first_table(
    settings: &Settings,
    backends: &[Arc<Backend>],
    priors: &[Priors],
    pins: &[Option<Role>],
    catalog: &mut Catalog,
) -> RoutingTable {
    let observed = backends.iter().zip(priors).zip(pins).map(|((backend, priors), pinned)| {
        BackendObservation {
            id: backend.id,
            group: backend.group,
            allowed: backend.allowed,
            capability: backend.capability,
            pinned: *pinned,
            healthy: true,
            role: Role::Draining,
            becoming: None,
            prefill: Seconds::ZERO,
            streams: 0,
            streams_max: backend.streams_max,
            kv: Tokens::ZERO,
            kv_capacity: backend.kv_capacity(),
            prefill_model: priors.prefill,
            decode_model: priors.decode,
            colocates: backend.family.serves_colocated(),
        }
    });
    let observation = Observation { backends: observed.collect(), groups: Vec::new() };
    let mut roles = initial(&observation);
    for (role, backend) in roles.iter_mut().zip(&settings.backends) {
        *role = backend.role.unwrap_or(*role);
    }
    let entries = backends.iter().zip(priors).map(|(backend, priors)| TableEntry {
        role: roles[backend.id.index()],
        group: backend.group,
        prefill: priors.prefill,
        decode: priors.decode,
        transfer: TransferModel::default(),
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
