//! The reconciler: desired backends per source in, changes out. It does no I/O.
//!
//! A name belongs to the source with the highest precedence that has it. A bad entry is a value: the
//! other entries of the source apply, and the previous version of the bad one stays in force.

use std::collections::{BTreeMap, BTreeSet};

use crate::schema::BackendSettings;

/// A source of backends, in descending precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceId {
    /// The admin address.
    Admin,
    /// The settings file.
    File,
    /// A watched file or directory.
    Watched,
    /// DNS names.
    Dns,
    /// Pods of a Kubernetes cluster.
    Kubernetes,
}

/// An entry of a source that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadEntry {
    /// Name of the backend, as far as it is known.
    pub name: String,
    /// The cause.
    pub problem: String,
}

/// One difference between the backends in force and the desired ones.
#[derive(Clone, Debug, PartialEq)]
pub enum BackendChange {
    /// A backend joins.
    Join(Box<BackendSettings>),
    /// A backend leaves.
    Leave(String),
    /// A backend leaves, and one with the same name joins.
    Replace(Box<BackendSettings>),
}

/// The desired backends of all sources, and the ones in force.
#[derive(Clone, Debug, Default)]
pub struct Reconciler {
    sources: BTreeMap<SourceId, BTreeMap<String, BackendSettings>>,
    /// Names that an operator removed.
    hidden: BTreeSet<String>,
    in_force: BTreeMap<String, BackendSettings>,
    /// Versions that the last changes replaced.
    replaced: BTreeMap<String, BackendSettings>,
    /// Whether changes are to be made that failed before.
    has_failed: bool,
}

impl Reconciler {
    /// Replaces the desired backends of a source. Returns the changes, leaves first, and the entries
    /// that were not taken.
    pub fn set(
        &mut self,
        source: SourceId,
        desired: Vec<Result<BackendSettings, BadEntry>>,
    ) -> (Vec<BackendChange>, Vec<BadEntry>) {
        let mut before = self.sources.remove(&source).unwrap_or_default();
        let (mut now, mut bad) = (BTreeMap::new(), Vec::new());
        for entry in desired {
            match entry {
                Ok(backend) if now.contains_key(&backend.name) => bad.push(BadEntry {
                    name: backend.name,
                    problem: "has the same name as another entry of its source".to_owned(),
                }),
                Ok(backend) => {
                    now.insert(backend.name.clone(), backend);
                }
                Err(entry) => {
                    if let Some(old) = before.remove(&entry.name) {
                        now.entry(entry.name.clone()).or_insert(old);
                    }
                    bad.push(entry);
                }
            }
        }
        self.sources.insert(source, now);
        (self.changes(), bad)
    }

    /// Adds or replaces one backend of a source. A name that was removed is admitted again.
    pub fn put(&mut self, source: SourceId, backend: BackendSettings) -> Vec<BackendChange> {
        self.hidden.remove(&backend.name);
        self.sources.entry(source).or_default().insert(backend.name.clone(), backend);
        self.changes()
    }

    /// Removes a name from the source `Admin`, and hides it if another source lists it, until it is put
    /// again. Other names are not kept: those of pods are not used twice.
    pub fn remove(&mut self, name: &str) -> Vec<BackendChange> {
        if let Some(own) = self.sources.get_mut(&SourceId::Admin) {
            own.remove(name);
        }
        if self.sources.values().any(|own| own.contains_key(name)) {
            self.hidden.insert(name.to_owned());
        }
        self.changes()
    }

    /// Hides a name that an operator removed before the start: its source may not have answered yet.
    pub fn hide(&mut self, name: &str) -> Vec<BackendChange> {
        self.hidden.insert(name.to_owned());
        self.changes()
    }

    /// Returns whether an operator removed a name that another source lists.
    pub fn is_hidden(&self, name: &str) -> bool {
        self.hidden.contains(name)
    }

    /// Notes that the last change of this backend could not be made: its previous version is in
    /// force, and [`Reconciler::again`] returns the change.
    pub fn failed(&mut self, name: &str) {
        self.has_failed = true;
        match self.replaced.remove(name) {
            Some(old) => drop(self.in_force.insert(name.to_owned(), old)),
            None => drop(self.in_force.remove(name)),
        }
    }

    /// Replaces backends in force by the same ones, because of what their settings refer to.
    pub fn replace(&mut self, names: &[String]) -> Vec<BackendChange> {
        let same = |name: &String| self.in_force.get(name).cloned();
        let again: Vec<BackendSettings> = names.iter().filter_map(same).collect();
        for backend in &again {
            // A version that has just joined is the one before it too.
            self.replaced.entry(backend.name.clone()).or_insert_with(|| backend.clone());
        }
        again.into_iter().map(|backend| BackendChange::Replace(Box::new(backend))).collect()
    }

    /// Returns the changes that failed and are still desired.
    pub fn again(&mut self) -> Vec<BackendChange> {
        if self.has_failed { self.changes() } else { Vec::new() }
    }

    /// The backends in force, by name.
    pub fn in_force(&self) -> &BTreeMap<String, BackendSettings> {
        &self.in_force
    }

    /// Source of a backend in force.
    pub fn source(&self, name: &str) -> Option<SourceId> {
        self.in_force.get(name)?;
        self.sources.iter().find(|(_, own)| own.contains_key(name)).map(|(source, _)| *source)
    }

    /// Brings `in_force` up to date and returns the differences, leaves first.
    fn changes(&mut self) -> Vec<BackendChange> {
        let mut desired: BTreeMap<&String, &BackendSettings> = BTreeMap::new();
        for (name, backend) in self.sources.values().flatten() {
            if !self.hidden.contains(name) {
                desired.entry(name).or_insert(backend);
            }
        }
        let gone = self.in_force.keys().filter(|name| !desired.contains_key(name));
        let mut changes: Vec<BackendChange> = gone.cloned().map(BackendChange::Leave).collect();
        for (name, backend) in &desired {
            let boxed = || Box::new((*backend).clone());
            match self.in_force.get(*name) {
                Some(old) if old == *backend => {}
                Some(_) => changes.push(BackendChange::Replace(boxed())),
                None => changes.push(BackendChange::Join(boxed())),
            }
        }
        (self.has_failed, self.replaced) = (false, BTreeMap::new());
        for change in &changes {
            match change {
                BackendChange::Leave(name) => {
                    self.in_force.remove(name);
                }
                BackendChange::Join(backend) | BackendChange::Replace(backend) => {
                    let name = backend.name.clone();
                    if let Some(old) = self.in_force.insert(name.clone(), (**backend).clone()) {
                        self.replaced.insert(name, old);
                    }
                }
            }
        }
        changes
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
