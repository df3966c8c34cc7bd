//! Pods, and the InferencePool that selects them, as backends.

use std::collections::BTreeMap;
use tidegate_settings::{BackendSettings, PodSettings};
use tokio::sync::watch;

use crate::access::Access;
use crate::backends::{PodBackend, of_pod};
use crate::convention;
use crate::objects::Objects;
use crate::pod::{InferencePool, Pod};
use crate::watcher::{Collection, Watcher};

/// The pods of one template.
pub struct Source {
    access: Access,
    template: BackendSettings,
    rules: PodSettings,
}

/// The selector and ports in force.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selection {
    selector: String,
    ports: Option<Vec<u16>>,
}

impl Source {
    /// Nothing is requested before [`Source::run`].
    pub fn new(access: Access, template: BackendSettings, rules: PodSettings) -> Source {
        Source { access, template, rules }
    }

    /// Publishes the backends after the first list and on every change, until the receiver is dropped.
    pub async fn run(self, backends: watch::Sender<Option<Vec<PodBackend>>>) {
        let Some(pool) = &self.rules.inference_pool else {
            let selector = self.rules.selector.clone();
            let selector =
                selector.unwrap_or_else(|| convention::selector(self.rules.preset).to_owned());
            return self.follow(Selection { selector, ports: None }, &backends).await;
        };
        let (selected, mut selection) = watch::channel(None);
        let following = Watcher::new(self.access.clone(), self.pool(pool)).run(|objects| {
            select(objects, &selected);
        });
        let applying = async {
            loop {
                let current = selection.borrow_and_update().clone();
                let follow = async {
                    match current {
                        // The first list of a new selection replaces the backends of the old one.
                        Some(current) => self.follow(current, &backends).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = follow => {}
                    changed = selection.changed() => if changed.is_err() { return },
                }
            }
        };
        tokio::select! {
            () = following => {}
            () = applying => {}
            () = backends.closed() => {}
        }
    }

    async fn follow(
        &self,
        selection: Selection,
        backends: &watch::Sender<Option<Vec<PodBackend>>>,
    ) {
        let pods = Collection {
            path: format!("/api/v1/namespaces/{}/pods", self.namespace()),
            labels: selection.selector,
            fields: String::new(),
        };
        let watching = Watcher::new(self.access.clone(), pods).run(|objects: &Objects<Pod>| {
            let found = self.backends(objects, selection.ports.as_deref());
            backends.send_if_modified(|known| {
                let differs = known.as_ref() != Some(&found);
                if differs {
                    *known = Some(found);
                }
                differs
            });
        });
        tokio::select! {
            () = watching => {}
            () = backends.closed() => {}
        }
    }

    /// The backends of all pods, by name. Two pods of one name and port cannot be.
    fn backends(&self, objects: &Objects<Pod>, ports: Option<&[u16]>) -> Vec<PodBackend> {
        let pods = objects.all().into_iter().flatten();
        let found = pods.flat_map(|pod| of_pod(pod, &self.template, &self.rules, ports));
        let by_name: BTreeMap<String, PodBackend> =
            found.map(|backend| (backend.settings.name.clone(), backend)).collect();
        by_name.into_values().collect()
    }

    fn pool(&self, name: &str) -> Collection {
        let namespace = self.namespace();
        let group = "apis/inference.networking.k8s.io/v1";
        Collection {
            path: format!("/{group}/namespaces/{namespace}/inferencepools"),
            labels: String::new(),
            fields: format!("metadata.name={name}"),
        }
    }

    fn namespace(&self) -> &str {
        self.rules.namespace.as_deref().unwrap_or(&self.access.namespace)
    }
}

/// A pool that is deleted leaves the last selection in force.
fn select(objects: &Objects<InferencePool>, selected: &watch::Sender<Option<Selection>>) {
    let Some(pool) = objects.all().and_then(|mut all| all.next()) else {
        tracing::warn!("the InferencePool does not exist: the last known backends stay in force");
        return;
    };
    let selector = pool.selector();
    if selector.is_empty() {
        tracing::warn!(
            "the InferencePool selects no labels: the last known backends stay in force"
        );
        return;
    }
    let new = Some(Selection { selector, ports: Some(pool.ports()) });
    selected.send_if_modified(|known| {
        let differs = *known != new;
        *known = new.clone();
        differs
    });
}
