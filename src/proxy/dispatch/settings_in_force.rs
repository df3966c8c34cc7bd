//! The settings in force: one immutable snapshot, replaced as a whole by a reload. A request loads it
//! once, when its head has arrived, and keeps it to its end.

use arc_swap::{ArcSwap, Guard};
use std::fmt;
use std::sync::Arc;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_filters::{
    ApiKey, Chain, ChainParams, HandoffHost, HandoffTrust, ServiceClass, ServiceClasses,
};
use tidegate_scheduler::placement::Params as PlacementParams;
use tidegate_settings::Settings;
use tidegate_types::{ClassKind, DEFAULT_CLASS, Seconds};

use crate::dispatch::cors::Cors;
use crate::runtime::budget;
use crate::runtime::filter_permits::FilterPermits;

/// Cause for which the settings were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The start of the process.
    Start,
    /// SIGHUP.
    Signal,
    /// A change of the file.
    FileChange,
}

/// One version of the settings, with the values derived from them.
pub struct SettingsInForce {
    /// Number of this version, from 1.
    pub revision: u64,
    /// Seconds since the Unix epoch.
    pub loaded_at: f64,
    /// What caused it to be read.
    pub trigger: Trigger,
    /// The validated settings.
    pub values: Settings,
    /// The request filters, in order.
    pub chain: Chain,
    /// CORS headers, if configured.
    pub cors: Option<Cors>,
    /// Service classes.
    pub classes: ServiceClasses,
    /// Parameters of placement.
    pub placement: PlacementParams,
    /// Interval of keep-alive comments on streams without data.
    pub keepalive_comment: Option<Seconds>,
    /// Whether clients' `Authorization` is withheld from engines, because the keys are the
    /// gateway's own.
    pub keeps_authorization: bool,
    /// Bearer tokens of the admin address; empty: no token is required.
    pub admin_tokens: Vec<String>,
    /// Size of the budget of all request bodies, in bytes.
    pub body_budget: usize,
    /// Permits to filter a large body, one fewer than cores; further bodies wait in order.
    pub(crate) filter_permits: Arc<FilterPermits>,
}

/// The secrets of the settings, from the settings themselves and from the files that they name.
#[derive(Clone, Default)]
pub struct Secrets {
    /// API keys of clients.
    pub keys: Vec<ApiKey>,
    /// Bearer tokens of the admin address.
    pub admin_tokens: Vec<String>,
}

impl SettingsInForce {
    pub fn first(values: Settings, secrets: Secrets, loaded_at: f64) -> SettingsInForce {
        SettingsInForce::version(values, secrets, loaded_at, Trigger::Start, None)
    }

    /// The version that replaces this one.
    pub fn next(
        &self,
        values: Settings,
        secrets: Secrets,
        loaded_at: f64,
        trigger: Trigger,
    ) -> SettingsInForce {
        SettingsInForce::version(values, secrets, loaded_at, trigger, Some(self))
    }

    fn version(
        values: Settings,
        secrets: Secrets,
        loaded_at: f64,
        trigger: Trigger,
        before: Option<&SettingsInForce>,
    ) -> SettingsInForce {
        let Secrets { keys, admin_tokens } = secrets;
        let body_budget = values.server.body_budget_bytes.unwrap_or_else(budget::default_max);
        let same_budget = before.filter(|before| before.body_budget == body_budget);
        let filter_permits = match same_budget {
            Some(before) => Arc::clone(&before.filter_permits),
            None => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                Arc::new(FilterPermits::new(cores, body_budget))
            }
        };
        SettingsInForce {
            revision: before.map_or(1, |before| before.revision + 1),
            loaded_at,
            trigger,
            cors: values.server.cors.as_ref().map(Cors::new),
            classes: service_classes(&values),
            placement: values.placement_params(),
            keepalive_comment: values.server.keepalive_comment_interval(),
            keeps_authorization: !keys.is_empty() && !values.auth.forward_authorization,
            chain: Chain::new(ChainParams {
                keys,
                body_max: values.server.body_max_bytes,
                prefix_block: values.prefix.block_tokens,
                handoff: handoff_trust(&values),
                ..ChainParams::default()
            }),
            admin_tokens,
            body_budget,
            filter_permits,
            values,
        }
    }

    /// Longest time without bytes of an engine after which its stream is cut; 0: no limit.
    pub fn silence_max(&self) -> Seconds {
        self.values.upstream.silence
    }
}

impl fmt::Debug for SettingsInForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SettingsInForce").field("revision", &self.revision).finish_non_exhaustive()
    }
}

/// Trust in hand-off members sent by clients. Validation of the settings has already reported
/// invalid hosts.
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

/// Returns the service classes. Validation of the settings has already reported invalid networks.
fn service_classes(settings: &Settings) -> ServiceClasses {
    let default = ServiceClass {
        name: DEFAULT_CLASS.into(),
        models: Vec::new(),
        keys: Vec::new(),
        objectives: Vec::new(),
        stated_targets: false,
        kind: ClassKind::Interactive,
        slo: settings.slo(),
        queue_deadline: settings.queue.deadline,
    };
    let classes = settings.slo.classes.iter().map(|class| ServiceClass {
        name: class.name.as_str().into(),
        models: class.models.clone(),
        keys: class.keys.clone(),
        objectives: class.objectives.clone(),
        stated_targets: class.stated_targets,
        kind: if class.batch { ClassKind::Batch } else { ClassKind::Interactive },
        slo: settings.class_slo(class),
        queue_deadline: match class.batch {
            true => class.queue_deadline.unwrap_or(Seconds(f64::INFINITY)),
            false => settings.queue.deadline,
        },
    });
    let classes = classes.collect();
    let peers = settings.slo.trusted_peers.iter();
    let network = |peer: &String| match HandoffHost::parse(peer)? {
        HandoffHost::Net(network) => Some(network),
        HandoffHost::Name(_) => None,
    };
    ServiceClasses::new(default, classes, peers.filter_map(network).collect())
}

/// The snapshot in force, and the result of the last reload.
pub struct SettingsSlot {
    current: ArcSwap<SettingsInForce>,
    last: ArcSwap<LastReload>,
    /// Loads of the snapshot, in builds with debug assertions.
    #[cfg(debug_assertions)]
    loads: AtomicU64,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct LastReload {
    /// Seconds since the Unix epoch; absent before the first one.
    pub at: Option<f64>,
    /// Its errors; empty if it succeeded.
    pub errors: Vec<String>,
    /// Settings of the file that differ from those in force and need a restart.
    pub needs_restart: Vec<String>,
}

impl SettingsSlot {
    /// A slot with its first version.
    pub fn new(first: SettingsInForce) -> SettingsSlot {
        SettingsSlot {
            current: ArcSwap::from_pointee(first),
            last: ArcSwap::default(),
            #[cfg(debug_assertions)]
            loads: AtomicU64::new(0),
        }
    }

    /// The snapshot for the duration of one step.
    pub fn load(&self) -> Guard<Arc<SettingsInForce>> {
        self.count();
        self.current.load()
    }

    /// The snapshot for a whole request.
    pub fn load_full(&self) -> Arc<SettingsInForce> {
        self.count();
        self.current.load_full()
    }

    pub fn last_reload(&self) -> Arc<LastReload> {
        self.last.load_full()
    }

    /// Replaces the snapshot. Called by the control loop only.
    pub(crate) fn store(&self, next: Arc<SettingsInForce>) {
        self.current.store(next);
    }

    /// Notes the result of a reload.
    pub(crate) fn note(&self, reload: LastReload) {
        self.last.store(Arc::new(reload));
    }

    /// Number of loads so far.
    #[cfg(debug_assertions)]
    pub fn loads(&self) -> u64 {
        self.loads.load(Relaxed)
    }

    #[cfg(debug_assertions)]
    fn count(&self) {
        self.loads.fetch_add(1, Relaxed);
    }

    #[cfg(not(debug_assertions))]
    fn count(&self) {}
}
