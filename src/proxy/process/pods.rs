//! Pods of a Kubernetes cluster as a source of backends (`[backends.kubernetes]`).
//!
//! The role label gives the first role; afterwards the planner decides, and a changed label of a known
//! pod changes nothing. A pod that terminates, is not ready or leaves the selector is not in the list:
//! its backend drains.

use std::collections::BTreeMap;
use tidegate_kubernetes::access::{Access, AccessError};
use tidegate_kubernetes::convention;
use tidegate_kubernetes::source::PodSource;
use tidegate_settings::reconcile::SourceId;
use tidegate_settings::{BackendSettings, Settings};
use tidegate_types::Role;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::control::FleetUpdate;
use crate::process::desired::{DesiredBackends, checked, send_changes};

/// The pods of all entries.
pub struct Pods {
    entries: Vec<PodEntry>,
    first_roles: FirstRoles,
}

/// The pods of one entry.
struct PodEntry {
    source: PodSource,
    /// The last known backends; `None` before the first list.
    known: Option<Vec<BackendSettings>>,
}

/// The first role of each known backend, by name and uid.
#[derive(Default)]
struct FirstRoles(BTreeMap<(String, Option<String>), Option<Role>>);

impl Pods {
    /// `None` without `[backends.kubernetes]`.
    ///
    /// # Errors
    /// [`AccessError`] without an API server.
    pub fn new(settings: &Settings) -> Result<Option<Pods>, AccessError> {
        let mut entries = Vec::new();
        for entry in &settings.sources {
            let Some(rules) = &entry.kubernetes else { continue };
            let access = Access::of_process(&settings.kubernetes)?;
            let mut rules = rules.clone();
            let written = settings.kubernetes.role_labels.as_ref();
            rules.is_mirrored =
                written.is_some_and(|own| convention::reads_role_from(&rules, &own.label));
            let source = PodSource::new(access, entry.clone(), rules);
            entries.push(PodEntry { source, known: None });
        }
        let first_roles = FirstRoles::default();
        Ok((!entries.is_empty()).then_some(Pods { entries, first_roles }))
    }

    /// Lists the pods once; `None` if no entry could be listed.
    pub async fn first(&mut self) -> Option<DesiredBackends> {
        let mut known = Vec::with_capacity(self.entries.len());
        for entry in &mut self.entries {
            known.push(entry.source.list().await.unwrap_or_else(|error| {
                tracing::warn!("pods cannot be listed yet: {error}");
                None
            }));
        }
        // Only now: backends that the caller has not received would count as sent.
        self.entries.iter_mut().zip(known).for_each(|(entry, known)| entry.known = known);
        let lists: Vec<_> = self.entries.iter().filter_map(|entry| entry.known.clone()).collect();
        (!lists.is_empty()).then(|| self.first_roles.desired(lists.into_iter().flatten()))
    }

    /// Follows the pods until the control loop ends.
    pub async fn run(self, updates: mpsc::Sender<FleetUpdate>) {
        let Pods { entries, mut first_roles } = self;
        let mut tasks = JoinSet::new();
        let mut lists = Vec::new();
        for PodEntry { source, known } in entries {
            let (sender, list) = watch::channel(known);
            tasks.spawn(source.run(sender));
            lists.push(list);
        }
        let desired = |all: Vec<BackendSettings>| first_roles.desired(all.into_iter());
        send_changes(SourceId::Kubernetes, lists, updates, desired).await;
    }
}

impl FirstRoles {
    /// Returns the backends with the roles they joined with; unusable ones are returned as
    /// problems.
    fn desired(&mut self, backends: impl Iterator<Item = BackendSettings>) -> DesiredBackends {
        let known = std::mem::take(&mut self.0);
        let one = |mut backend: BackendSettings| {
            let key = (backend.name.clone(), backend.uid.clone());
            backend.role = known.get(&key).copied().unwrap_or(backend.role);
            self.0.insert(key, backend.role);
            backend
        };
        checked(backends.map(one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_settings::{Connector, EngineName};

    fn pod(uid: &str, role: Option<Role>) -> BackendSettings {
        BackendSettings {
            name: "a".into(),
            url: "http://10.0.0.1:8000".into(),
            uid: Some(uid.into()),
            role,
            engine: EngineName::Vllm,
            connector: Connector::Nixl,
            ..BackendSettings::default()
        }
    }

    #[test]
    fn the_label_of_a_known_pod_changes_nothing() {
        let mut roles = FirstRoles::default();
        let mut role_of = |pod: BackendSettings| {
            let desired = roles.desired([pod].into_iter());
            desired.into_iter().next().unwrap().unwrap().role
        };
        assert_eq!(role_of(pod("1", Some(Role::Prefill))), Some(Role::Prefill));
        assert_eq!(role_of(pod("1", Some(Role::Decode))), Some(Role::Prefill));
        assert_eq!(role_of(pod("1", None)), Some(Role::Prefill));
        assert_eq!(role_of(pod("2", Some(Role::Decode))), Some(Role::Decode), "another engine");
        assert_eq!(role_of(pod("1", None)), None, "the pod was deleted and created again");
    }

    #[test]
    fn a_role_that_the_engine_cannot_have_is_a_problem() {
        let mut roles = FirstRoles::default();
        let whole = BackendSettings { connector: Connector::None, ..pod("1", Some(Role::Prefill)) };
        let desired = roles.desired([whole].into_iter());
        let bad = desired.into_iter().next().unwrap().unwrap_err();
        assert!(bad.name == "a" && bad.problem.contains("cannot be prefill"), "{bad:?}");
    }
}
