//! Pods, and the InferencePool that selects them, as backends.

use std::collections::BTreeMap;
use tidegate_settings::{BackendSettings, PodSettings};
use tokio::sync::watch;

use crate::access::Access;
use crate::api::KubeApiError;
use crate::backends::of_pod;
use crate::convention::{self, PodKind};
use crate::objects::Objects;
use crate::pod::{InferencePool, Pod};
use crate::watcher::{Collection, Watcher, list};

/// The pods of one template.
pub struct PodSource {
    access: Access,
    template: BackendSettings,
    rules: PodSettings,
}

/// The selected pods, and their backends.
#[derive(Clone, Debug)]
pub struct PodSurvey {
    /// Namespace of the pods.
    pub namespace: String,
    /// Label selector.
    pub selector: String,
    /// Name of each selected pod, and how it is used.
    pub pods: Vec<(String, PodUse)>,
    /// The backends.
    pub backends: Vec<BackendSettings>,
}

/// Whether a selected pod is a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodUse {
    /// One or several backends.
    Backend,
    /// An engine that receives no new requests: not ready, or being deleted.
    NotReady,
    /// Not an engine according to its labels.
    NoEngine,
}

/// The selector and ports in force.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selection {
    selector: String,
    ports: Option<Vec<u16>>,
}

impl PodSource {
    /// Creates the source; the first request is sent by [`PodSource::run`].
    pub fn new(access: Access, template: BackendSettings, rules: PodSettings) -> PodSource {
        PodSource { access, template, rules }
    }

    /// Publishes the backends after the first list and on every change, until the receiver is dropped.
    pub async fn run(self, backends: watch::Sender<Option<Vec<BackendSettings>>>) {
        let Some(pool) = &self.rules.inference_pool else {
            return self.follow(self.selection(), &backends).await;
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
        backends: &watch::Sender<Option<Vec<BackendSettings>>>,
    ) {
        let pods = self.pods(&selection.selector);
        let watching = Watcher::new(self.access.clone(), pods).run(|objects: &Objects<Pod>| {
            let pods = objects.all().into_iter().flatten();
            let found = self.backends(pods, selection.ports.as_deref());
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

    /// Returns the backends of one list of pods; `None` if the InferencePool does not exist or selects
    /// no labels.
    ///
    /// # Errors
    /// [`KubeApiError`] when the request to the API server fails.
    pub async fn list(&self) -> Result<Option<Vec<BackendSettings>>, KubeApiError> {
        Ok(self.survey().await?.map(|survey| survey.backends))
    }

    /// Returns the selected pods from one list; `None` if the InferencePool does not exist or selects no
    /// labels.
    ///
    /// # Errors
    /// [`KubeApiError`] when the request to the API server fails.
    pub async fn survey(&self) -> Result<Option<PodSurvey>, KubeApiError> {
        let selection = match &self.rules.inference_pool {
            None => Some(self.selection()),
            Some(pool) => {
                let (pools, _) = list::<InferencePool>(&self.access, &self.pool(pool)).await?;
                pools.first().and_then(selection_of)
            }
        };
        let Some(Selection { selector, ports }) = selection else { return Ok(None) };
        let (pods, _) = list::<Pod>(&self.access, &self.pods(&selector)).await?;
        Ok(Some(PodSurvey {
            namespace: self.namespace().to_owned(),
            pods: pods.iter().map(|pod| (pod.metadata.name.clone(), self.use_of(pod))).collect(),
            backends: self.backends(&pods, ports.as_deref()),
            selector,
        }))
    }

    fn use_of(&self, pod: &Pod) -> PodUse {
        match convention::pod_kind(&pod.metadata.labels, &self.rules) {
            PodKind::Other => PodUse::NoEngine,
            PodKind::Engine(_) if pod.is_ready() => PodUse::Backend,
            PodKind::Engine(_) => PodUse::NotReady,
        }
    }

    /// The backends of all pods, by name. Two pods of one name and port cannot be.
    fn backends<'a>(
        &self,
        pods: impl IntoIterator<Item = &'a Pod>,
        ports: Option<&[u16]>,
    ) -> Vec<BackendSettings> {
        let pods = pods.into_iter();
        let found = pods.flat_map(|pod| of_pod(pod, &self.template, &self.rules, ports));
        let by_name: BTreeMap<String, BackendSettings> =
            found.map(|backend| (backend.name.clone(), backend)).collect();
        by_name.into_values().collect()
    }

    /// The selection without an InferencePool.
    fn selection(&self) -> Selection {
        let selector = self.rules.selector.clone();
        let selector =
            selector.unwrap_or_else(|| convention::selector(self.rules.preset).to_owned());
        Selection { selector, ports: None }
    }

    fn pods(&self, selector: &str) -> Collection {
        Collection {
            path: format!("/api/v1/namespaces/{}/pods", self.namespace()),
            labels: selector.to_owned(),
            fields: String::new(),
        }
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
    let new = selection_of(pool);
    if new.is_none() {
        tracing::warn!(
            "the InferencePool selects no labels: the last known backends stay in force"
        );
        return;
    }
    selected.send_if_modified(|known| {
        let differs = *known != new;
        *known = new.clone();
        differs
    });
}

/// The selection of a pool; `None` if it selects no labels.
fn selection_of(pool: &InferencePool) -> Option<Selection> {
    let selector = pool.selector();
    (!selector.is_empty()).then(|| Selection { selector, ports: Some(pool.ports()) })
}
