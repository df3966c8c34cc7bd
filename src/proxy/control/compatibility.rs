//! Compatibility of engines with their settings and with each other. Keeps the facts that each
//! engine last reported, has `tidegate_signals` judge them, and applies the verdict to the log, the
//! backend and the table's groups. It contains no compatibility rules itself.

use std::sync::Arc;
use tidegate_engine::Family;
use tidegate_signals::compatibility::{Compatibility, ConfiguredBackend, assign_groups, mode_of};
use tidegate_signals::facts::{DisaggregationMode, Facts};
use tidegate_types::{BackendId, Role};

use crate::backends::fleet::{Backend, EngineReport, Fleet, RoutingTable};

/// Configured and reported facts of all engines, by backend slot.
pub struct EngineCompatibility {
    configured: Vec<ConfiguredBackend>,
    reported: Vec<Option<Facts>>,
}

impl EngineCompatibility {
    /// `configured`: facts from the settings. `reported`: facts that engines reported during start-up
    /// verification.
    pub fn new(
        configured: Vec<ConfiguredBackend>,
        reported: Vec<Option<Facts>>,
    ) -> EngineCompatibility {
        EngineCompatibility { configured, reported }
    }

    /// Adds a backend that joins; it has reported no facts.
    pub fn join(&mut self, backend: BackendId, configured: ConfiguredBackend) {
        backend.put(&mut self.configured, configured);
        backend.put(&mut self.reported, None);
    }

    /// Forgets the facts of a backend that has left.
    pub fn leave(&mut self, backend: BackendId) {
        self.reported[backend.index()] = None;
    }

    /// Stores the facts that an engine reported. Returns whether they changed.
    pub fn store_facts(&mut self, backend: BackendId, facts: Facts) -> bool {
        let reported = &mut self.reported[backend.index()];
        let new = reported.as_ref() != Some(&facts);
        *reported = Some(facts);
        new
    }

    /// The PD role in which an engine reports to run; `None` for engines that run colocated requests.
    pub fn reported_role(&self, backend: BackendId) -> Option<Role> {
        match self.reported[backend.index()].as_ref()?.mode? {
            DisaggregationMode::Half(role) => Some(role),
            DisaggregationMode::Colocated => None,
        }
    }

    /// Records a verified role switch.
    pub fn switched(&mut self, backend: BackendId, role: Role) {
        if let Some(facts) = &mut self.reported[backend.index()] {
            facts.mode = Some(DisaggregationMode::Half(role));
        }
    }

    /// Judges all engines and applies the verdicts to `table` and to the backends.
    pub fn apply(&mut self, backends: &[Arc<Backend>], table: &mut RoutingTable) {
        for (configured, backend) in self.configured.iter_mut().zip(backends) {
            if matches!(backend.family, Family::SglangPd | Family::VllmPdRole) {
                // A draining or switching engine has no configured mode.
                configured.mode = mode_of(table.plan.role(backend.id));
            }
        }
        let before: Vec<_> = table.entries.iter().map(|entry| entry.group).collect();
        let fits = assign_groups(&self.configured, &self.reported, &before);
        for (backend, fit) in backends.iter().zip(fits) {
            let version =
                self.reported[backend.id.index()].as_ref().and_then(|f| f.version.clone());
            table.entries[backend.id.index()].group = fit.group;
            show(backend, version, &fit);
        }
    }
}

fn show(backend: &Backend, version: Option<String>, fit: &Compatibility) {
    let misfits: Vec<String> = fit.misfits.iter().map(ToString::to_string).collect();
    let before = backend.report.load();
    for misfit in misfits.iter().filter(|misfit| !before.misfits.contains(misfit)) {
        let out = fit.excluded;
        tracing::warn!(backend = %backend.name, out, "misfit: {misfit}");
    }
    if misfits.is_empty() && !before.misfits.is_empty() {
        tracing::info!(backend = %backend.name, "misfit: resolved");
    }
    let kinds = fit.misfits.iter().map(|misfit| misfit.as_str()).collect();
    backend.report.store(Arc::new(EngineReport { version, misfits, kinds }));
    if backend.health.set_unfit(fit.excluded) {
        let health = if fit.excluded { "unfit" } else { "fit" };
        tracing::warn!(backend = %backend.name, health, "compatibility verdict changed");
    }
}

/// Sets the groups of the first table, before requests are served.
pub fn first(compatibility: &mut EngineCompatibility, fleet: &Fleet) {
    let mut table = (**fleet.table()).clone();
    compatibility.apply(&fleet.backends(), &mut table);
    fleet.publish(table);
}
