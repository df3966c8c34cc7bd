//! Builds a proxy from settings: constructs and connects every part, once.

use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use tidegate_filters::Sampler;
use tidegate_settings::reconcile::Reconciler;
use tidegate_settings::{BackendSettings, Settings};
use tidegate_types::{Moment, Seconds, Tokens};
use tokio::sync::{Notify, mpsc, watch};

use crate::backends::expand;
use crate::backends::fleet::Fleet;
use crate::backends::probe::{ProbeParams, ProbeReport};
use crate::control::operator_backends::OperatorBackends;
use crate::control::operator_roles::OperatorRoles;
use crate::control::pins::Pins;
use crate::control::{
    Catalog, Control, FleetUpdate, Gateways, Inboxes, Leadership, Membership, Pace, Revision,
    RoleCommand,
};
use crate::dispatch::context::Proxy;
use crate::dispatch::discovery::ModelDiscovery;
use crate::dispatch::dispatcher::Dispatcher;
use crate::dispatch::queue::Queue;
use crate::dispatch::settings_in_force::{SettingsInForce, SettingsSlot};
use crate::dispatch::sidecar::Sidecar;
use crate::process::background::{Background, Tasks};
use crate::process::config_file::ConfigFile;
use crate::process::directories::Directories;
use crate::process::factory::{self, BackendFactory};
use crate::process::files::{self, Files, GatewayFiles};
use crate::process::first_fleet::FirstFleet;
#[cfg(feature = "kubernetes")]
use crate::process::gateway_lease::GatewayLease;
use crate::process::gateways::{self, GatewayList, LoadExchange};
use crate::process::names::Names;
#[cfg(feature = "kubernetes")]
use crate::process::pods::Pods;
#[cfg(feature = "kubernetes")]
use crate::process::pool_pods::PoolPods;
#[cfg(feature = "kubernetes")]
use crate::process::role_labels::RoleLabels;
use crate::process::sources::Sources;
#[cfg(feature = "otlp")]
use crate::process::span_export;
use crate::process::start_error::StartError;
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
    require_kubernetes(settings)?;
    let clock = Clock::start();
    let DesiredFleet { settings, values, reconciler, sources, operator_backends, files, roles } =
        desired_fleet(settings)?;
    let settings = &settings;
    let factory = BackendFactory::new(settings, &files, clock);
    let FirstFleet { backends, fleet, metrics, priors, pins, catalog, compatibility } =
        FirstFleet::new(settings, &files, &factory, &roles, clock)?;
    let ((queue, inbox), (senders, inboxes)) = (Queue::new(), channels());
    let Senders { control_events, found, commands, revisions, fleet_updates } = senders;
    let parts = ContextParts { fleet, metrics, queue, control_events, found: found.clone() };
    let began = clock.wall(Moment::START);
    let in_force = SettingsInForce::first(values, files.secrets.clone(), began);
    let proxy = context(settings, in_force, clock, &catalog, parts);
    #[cfg(feature = "otlp")]
    let (proxy, span_exporter) = span_export::turn_on(proxy);
    let proxy = Arc::new(proxy);
    let probe = ProbeParams { interval: settings.probe.interval, timeout: settings.probe.timeout };
    let membership = membership(settings, factory, reconciler, operator_backends, probe, &found);
    let gateways = gateway_parts(settings, &files.gateways, &proxy)?;
    let control = Control::new(
        Arc::clone(&proxy),
        inboxes,
        Pace { interval: settings.planner.interval, gap: SHORTEST_PLAN_GAP },
        settings.planner.enabled,
        settings.planner_params(),
        Pins::new(pins),
        priors,
        catalog,
        recording(settings)?,
        compatibility,
        roles,
        membership,
        gateways.leadership,
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
        gateway_lease: gateways.lease,
        #[cfg(feature = "otlp")]
        span_exporter,
        exchange: gateways.exchange.clone(),
        peers: gateways.peers,
        config_file: ConfigFile::new(&proxy, revisions, fleet_updates.clone()),
        sources,
        fleet_updates: fleet_updates.clone(),
        watched: files.watched,
        guards: [liveness.guard("the control loop"), liveness.guard("the dispatcher")],
    });
    Ok(BuiltProxy {
        proxy,
        background,
        commands,
        fleet_updates,
        server_tls: files.server_tls,
        admin_tls: files.admin_tls,
        exchange: gateways.exchange,
        gateways_tls: files.gateways.tls,
    })
}

/// Refuses settings that need the API server in a build without it.
fn require_kubernetes(settings: &Settings) -> Result<(), StartError> {
    let pool = settings.sidecar.as_ref().and_then(|sidecar| sidecar.inference_pool.as_ref());
    let is_needed = pool.is_some()
        || settings.gateways.kubernetes.is_some()
        || settings.kubernetes.role_labels.is_some()
        || settings.sources.iter().any(|source| source.kubernetes.is_some());
    match is_needed && !cfg!(feature = "kubernetes") {
        true => Err(StartError::NoKubernetes),
        false => Ok(()),
    }
}

/// The backends desired at the start by all sources, with the files that they need.
struct DesiredFleet {
    /// The settings with the backends of all sources and the operator's roles.
    settings: Settings,
    /// The settings of the file, with host names expanded.
    values: Settings,
    reconciler: Reconciler,
    sources: Sources,
    operator_backends: OperatorBackends,
    files: Files,
    roles: OperatorRoles,
}

/// Reads the state file, the sources and all files.
fn desired_fleet(settings: &Settings) -> Result<DesiredFleet, StartError> {
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
    let roles = std::mem::take(&mut files.operator_roles);
    roles.apply(&mut settings);
    Ok(DesiredFleet { settings, values, reconciler, sources, operator_backends, files, roles })
}

/// Senders of the channels to the control loop.
struct Senders {
    control_events: mpsc::Sender<ControlEvent>,
    found: mpsc::Sender<ProbeReport>,
    commands: mpsc::Sender<RoleCommand>,
    revisions: mpsc::Sender<Revision>,
    fleet_updates: mpsc::Sender<FleetUpdate>,
}

/// Opens the channels to the control loop.
fn channels() -> (Senders, Inboxes) {
    let (control_events, events) = mpsc::channel(CONTROL_EVENTS_MAX);
    let (found, findings) = mpsc::channel(INBOX_MAX);
    let (commands, commanded) = mpsc::channel(INBOX_MAX);
    let (revisions, revised) = mpsc::channel(INBOX_MAX);
    let (fleet_updates, fleet_updated) = mpsc::channel(INBOX_MAX);
    let inboxes = Inboxes {
        control_events: events,
        found: findings,
        commands: commanded,
        revisions: revised,
        fleet: fleet_updated,
    };
    (Senders { control_events, found, commands, revisions, fleet_updates }, inboxes)
}

/// Membership of the fleet: desired backends, and the probes of those that join.
fn membership(
    settings: &Settings,
    factory: BackendFactory,
    reconciler: Reconciler,
    operator_backends: OperatorBackends,
    probe: ProbeParams,
    found: &mpsc::Sender<ProbeReport>,
) -> Membership {
    let names = settings.backends.iter().map(BackendSettings::group_name);
    Membership::new(
        reconciler,
        Box::new(move |backend, id, group| factory.joining(backend, id, group)),
        probe,
        found.clone(),
        operator_backends,
        names.zip(settings.groups()).collect(),
    )
}

/// Leadership among several gateways, and their exchange of loads.
struct GatewayParts {
    /// The control loop's end of the Lease or of the static list.
    leadership: Option<Gateways>,
    #[cfg(feature = "kubernetes")]
    lease: Option<GatewayLease>,
    exchange: Option<Arc<LoadExchange>>,
    peers: Option<GatewayList>,
}

fn gateway_parts(
    settings: &Settings,
    files: &GatewayFiles,
    proxy: &Arc<Proxy>,
) -> Result<GatewayParts, StartError> {
    let identity = gateways::identity();
    let (leadership, _) = watch::channel(Leadership::default());
    #[cfg(feature = "kubernetes")]
    let (lease, of_lease) = GatewayLease::new(settings, &identity, leadership.clone())?.unzip();
    #[cfg(not(feature = "kubernetes"))]
    let of_lease = None;
    let (exchange, peers, listed) = exchange(settings, files, proxy, identity, leadership);
    Ok(GatewayParts {
        leadership: of_lease.or(listed),
        #[cfg(feature = "kubernetes")]
        lease,
        exchange,
        peers,
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

/// The parts of the shared state that other parts are built from.
struct ContextParts {
    fleet: Fleet,
    metrics: Metrics,
    queue: Queue,
    control_events: mpsc::Sender<ControlEvent>,
    found: mpsc::Sender<ProbeReport>,
}

/// Builds what all requests share.
fn context(
    settings: &Settings,
    in_force: SettingsInForce,
    clock: Clock,
    catalog: &Catalog,
    parts: ContextParts,
) -> Proxy {
    let ContextParts { fleet, metrics, queue, control_events, found } = parts;
    metrics.reloaded(1, true, clock.wall(Moment::START));
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
        replan: Notify::new(),
        signals: EngineSignals::new(settings, &metrics),
        metrics,
        journal: Journal::default(),
        outlook: ArcSwap::default(),
        arrivals: ArrivalLog::default(),
        history: History::default(),
        recent: Recent::new(settings.admin.requests_kept),
        sampler: Sampler::OF_CLIENT,
        #[cfg(feature = "otlp")]
        spans: None,
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
