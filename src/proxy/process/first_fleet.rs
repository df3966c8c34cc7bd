//! The fleet at the start: backends, their configured and reported facts, and the first routing table.

use std::collections::HashMap;
use std::sync::Arc;
use tidegate_scheduler::cost::{PrefixIndex, TransferModel};
use tidegate_scheduler::learn::{Estimates, Priors};
use tidegate_scheduler::planner::{BackendObservation, Observation, initial};
use tidegate_settings::{BackendSettings, Settings};
use tidegate_types::{Moment, Plan, Role, Seconds, Tokens};

use crate::backends::fleet::{Backend, Fleet, Pin, RoutingTable, TableEntry};
use crate::backends::startup_verification;
use crate::control::compatibility::{self, EngineCompatibility};
use crate::control::operator_roles::OperatorRoles;
use crate::control::{Catalog, ConfiguredModels};
use crate::process::factory::{self, BackendFactory};
use crate::process::files::Files;
use crate::process::start_error::StartError;
use crate::runtime::clock::Clock;
use crate::telemetry::metrics::Metrics;

/// The backends with the state that the control loop keeps of them.
pub struct FirstFleet {
    pub backends: Vec<Arc<Backend>>,
    pub fleet: Fleet,
    pub metrics: Metrics,
    pub priors: Vec<Priors>,
    pub pins: Vec<Option<Pin>>,
    pub catalog: Catalog,
    pub compatibility: EngineCompatibility,
}

impl FirstFleet {
    /// Builds the backends, reads the facts of their engines and checks them against the settings.
    ///
    /// # Errors
    /// A backend cannot be built, or facts contradict the settings (`strict_start`).
    pub fn new(
        settings: &Settings,
        files: &Files,
        factory: &BackendFactory,
        operator_roles: &OperatorRoles,
        clock: Clock,
    ) -> Result<FirstFleet, StartError> {
        let backends = factory::backends(settings, files, factory)?;
        let configured = startup_verification::configured_all(settings);
        let pools = factory::pools(settings, files, factory)?;
        let reported = startup_verification::read_all_facts(settings, &backends, pools);
        startup_verification::check(settings, &configured, &reported)?;
        let priors: Vec<Priors> = settings
            .backends
            .iter()
            .map(|backend| Priors { prefill: backend.prefill_prior, decode: backend.decode_prior })
            .collect();
        let pins = pins(settings, operator_roles, clock);
        let pinned: Vec<Option<Role>> = pins.iter().map(|pin| pin.map(|pin| pin.role)).collect();
        let models = settings.backends.iter().map(ConfiguredModels::of).collect();
        let mut catalog = Catalog::new(models, files.models.clone());
        let table = first_table(settings, &backends, &priors, &pinned, &mut catalog);
        let metrics = Metrics::new(&backends)?;
        let fleet = fleet(settings, backends.clone(), table);
        let mut compatibility = EngineCompatibility::new(configured, reported);
        compatibility::first(&mut compatibility, &fleet);
        Ok(FirstFleet { backends, fleet, metrics, priors, pins, catalog, compatibility })
    }
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
