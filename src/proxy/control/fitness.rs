//! Do the engines fit the settings and each other? Remembers what each told last, has the pure room
//! judge, and makes what follows show: in the log, on the backend, in the table's groups. It must
//! never decide who fits.

use std::sync::Arc;
use tidegate_engine::Family;
use tidegate_signals::compatibility::{Compatibility, ConfiguredBackend, assign_groups, mode_of};
use tidegate_signals::facts::{DisaggregationMode, Facts};
use tidegate_types::{BackendId, Role};

use crate::fleet::{Backend, EngineWords, Fleet, RoutingTable};

/// What was said of all engines, and what they told.
pub struct Fitness {
    said: Vec<ConfiguredBackend>,
    told: Vec<Option<Facts>>,
}

impl Fitness {
    /// What the settings say, and what engines told before anything was served.
    pub fn new(said: Vec<ConfiguredBackend>, told: Vec<Option<Facts>>) -> Fitness {
        Fitness { said, told }
    }

    /// An engine said what it is. True if that is new.
    pub fn tell(&mut self, backend: BackendId, facts: Facts) -> bool {
        let told = &mut self.told[backend.index()];
        let new = told.as_ref() != Some(&facts);
        *told = Some(facts);
        new
    }

    /// The half that an engine does by its own word.
    pub fn role_told(&self, backend: BackendId) -> Option<Role> {
        match self.told[backend.index()].as_ref()?.mode? {
            DisaggregationMode::Half(role) => Some(role),
            DisaggregationMode::Whole => None,
        }
    }

    /// An engine has switched, which was verified.
    pub fn switched(&mut self, backend: BackendId, role: Role) {
        if let Some(facts) = &mut self.told[backend.index()] {
            facts.mode = Some(DisaggregationMode::Half(role));
        }
    }

    /// Judge all, and write what follows into `table` and onto the backends.
    pub fn apply(&mut self, backends: &[Arc<Backend>], table: &mut RoutingTable) {
        for (said, backend) in self.said.iter_mut().zip(backends) {
            if backend.family == Family::SglangPd {
                // While it drains or switches it is in neither.
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
        let out = fit.out;
        tracing::warn!(backend = %backend.name, out, "misfit: {word}");
    }
    if words.is_empty() && !before.misfits.is_empty() {
        tracing::info!(backend = %backend.name, "it fits again");
    }
    let kinds = fit.misfits.iter().map(|misfit| misfit.as_str()).collect();
    backend.words.store(Arc::new(EngineWords { version, misfits: words, kinds }));
    if backend.health.set_unfit(fit.out) {
        let health = if fit.out { "unfit" } else { "fit" };
        tracing::warn!(backend = %backend.name, health, "fitness");
    }
}

/// Fit a first table, before anything is served.
pub fn first(fitness: &mut Fitness, fleet: &Fleet) {
    let mut table = (**fleet.table()).clone();
    fitness.apply(&fleet.backends, &mut table);
    fleet.publish(table);
}
