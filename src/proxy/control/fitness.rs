//! Compatibility of engines with their settings and with each other. Keeps the facts that each
//! engine last reported, has `tidegate_signals` judge them, and applies the verdict to the log, the
//! backend and the table's groups. It contains no compatibility rules itself.

use std::sync::Arc;
use tidegate_engine::Family;
use tidegate_signals::compatibility::{Compatibility, ConfiguredBackend, assign_groups, mode_of};
use tidegate_signals::facts::{DisaggregationMode, Facts};
use tidegate_types::{BackendId, Role};

use crate::backends::fleet::{Backend, EngineWords, Fleet, RoutingTable};

/// Configured and reported facts of all engines, by backend slot.
pub struct Fitness {
    said: Vec<ConfiguredBackend>,
    told: Vec<Option<Facts>>,
}

impl Fitness {
    /// `said`: facts from the settings. `told`: facts that engines reported during start-up
    /// verification.
    pub fn new(said: Vec<ConfiguredBackend>, told: Vec<Option<Facts>>) -> Fitness {
        Fitness { said, told }
    }

    /// A backend that joins: nothing reported yet.
    pub fn join(&mut self, backend: BackendId, said: ConfiguredBackend) {
        match self.said.get_mut(backend.index()) {
            Some(slot) => *slot = said,
            None => {
                self.said.push(said);
                self.told.push(None);
            }
        }
    }

    /// Forgets the facts of a backend that has left.
    pub fn leave(&mut self, backend: BackendId) {
        self.told[backend.index()] = None;
    }

    /// Stores the facts that an engine reported. Returns whether they changed.
    pub fn tell(&mut self, backend: BackendId, facts: Facts) -> bool {
        let told = &mut self.told[backend.index()];
        let new = told.as_ref() != Some(&facts);
        *told = Some(facts);
        new
    }

    /// The PD role in which an engine reports to run; `None` for engines that run whole requests.
    pub fn role_told(&self, backend: BackendId) -> Option<Role> {
        match self.told[backend.index()].as_ref()?.mode? {
            DisaggregationMode::Half(role) => Some(role),
            DisaggregationMode::Whole => None,
        }
    }

    /// Records a verified role switch.
    pub fn switched(&mut self, backend: BackendId, role: Role) {
        if let Some(facts) = &mut self.told[backend.index()] {
            facts.mode = Some(DisaggregationMode::Half(role));
        }
    }

    /// Judges all engines and writes the verdicts into `table` and onto the backends.
    pub fn apply(&mut self, backends: &[Arc<Backend>], table: &mut RoutingTable) {
        for (said, backend) in self.said.iter_mut().zip(backends) {
            if backend.family == Family::SglangPd {
                // A draining or switching engine has no configured mode.
                said.mode = mode_of(table.plan.role(backend.id));
            }
        }
        let before: Vec<_> = table.entries.iter().map(|entry| entry.group).collect();
        let fits = assign_groups(&self.said, &self.told, &before);
        for (backend, fit) in backends.iter().zip(fits) {
            let version = self.told[backend.id.index()].as_ref().and_then(|f| f.version.clone());
            table.entries[backend.id.index()].group = fit.group;
            show(backend, version, &fit);
        }
    }
}

fn show(backend: &Backend, version: Option<String>, fit: &Compatibility) {
    let words: Vec<String> = fit.misfits.iter().map(ToString::to_string).collect();
    let before = backend.words.load();
    for word in words.iter().filter(|word| !before.misfits.contains(word)) {
        let out = fit.excluded;
        tracing::warn!(backend = %backend.name, out, "misfit: {word}");
    }
    if words.is_empty() && !before.misfits.is_empty() {
        tracing::info!(backend = %backend.name, "misfit: none any more");
    }
    let kinds = fit.misfits.iter().map(|misfit| misfit.as_str()).collect();
    backend.words.store(Arc::new(EngineWords { version, misfits: words, kinds }));
    if backend.health.set_unfit(fit.excluded) {
        let health = if fit.excluded { "unfit" } else { "fit" };
        tracing::warn!(backend = %backend.name, health, "compatibility verdict changed");
    }
}

/// Sets the groups of the first table, before requests are served.
pub fn first(fitness: &mut Fitness, fleet: &Fleet) {
    let mut table = (**fleet.table()).clone();
    fitness.apply(&fleet.backends(), &mut table);
    fleet.publish(table);
}
