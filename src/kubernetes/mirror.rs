//! Writes roles as labels of pods, unless the selector of the pod's owner contains the label. A refusal is
//! reported by one Event per pod.
//!
//! Labels do not control roles: a pod whose label cannot be written keeps its role in the plan.

use bytes::Bytes;
use http::Method;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tidegate_types::{Moment, Seconds};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::access::Access;
use crate::api::{self, KubeApiError};
use crate::backoff::Backoff;
use crate::labels::{HostRole, LabelRefusal, Workload, Writes, controller, owner_path, wanted};
use crate::pod::Pod;
use crate::watcher::{Collection, Watcher, list};

/// Longest time of one request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of retries for pods that could not be written.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Outcome for one pod, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirrored {
    /// A label was written.
    Written,
    /// The label may not be written.
    Refused(LabelRefusal),
    /// The API server refused, or did not answer.
    Failed,
}

/// Roles of backends as labels of their pods.
pub struct Mirror {
    access: Access,
    namespace: String,
    selector: String,
    key: String,
}

/// Cached selectors, and the pods already reported.
#[derive(Default)]
struct Known {
    writes: Writes,
    /// Whether an owner's selector contains the key, by the owner's path.
    owners: BTreeMap<String, bool>,
    /// Uids of pods whose refusal was reported.
    reported: BTreeSet<String>,
}

impl Mirror {
    /// Writes the label `key` of the pods that `selector` selects in `namespace`; absent: that of `access`.
    pub fn new(access: Access, namespace: Option<&str>, selector: &str, key: &str) -> Mirror {
        let namespace = namespace.unwrap_or(&access.namespace).to_owned();
        Mirror { access, namespace, selector: selector.to_owned(), key: key.to_owned() }
    }

    /// Returns each selected pod with the reason why its label must not be written, if there is one. Writes
    /// nothing.
    ///
    /// # Errors
    /// [`KubeApiError`] when the request to the API server fails.
    pub async fn survey(&self) -> Result<Vec<(String, Option<LabelRefusal>)>, KubeApiError> {
        let (pods, _) = list::<Pod>(&self.access, &self.collection()).await?;
        let (mut known, mut survey) = (Known::default(), Vec::new());
        for pod in &pods {
            survey.push((pod.metadata.name.clone(), self.refusal(pod, &mut known).await?));
        }
        Ok(survey)
    }

    fn collection(&self) -> Collection {
        Collection {
            path: format!("/api/v1/namespaces/{}/pods", self.namespace),
            labels: self.selector.clone(),
            fields: String::new(),
        }
    }

    /// Writes the labels for each version of `roles` until its sender is dropped. `done` receives
    /// the outcome of each checked pod.
    pub async fn run(self, mut roles: watch::Receiver<Vec<HostRole>>, done: impl Fn(Mirrored)) {
        let (sender, mut pods) = watch::channel(Arc::new(Vec::<Pod>::new()));
        let watching = Watcher::<Pod>::new(self.access.clone(), self.collection()).run(|objects| {
            let all = objects.all().into_iter().flatten().cloned().collect();
            sender.send_replace(Arc::new(all));
        });
        let writing = async {
            let (started, mut known) = (Instant::now(), Known::default());
            let mut backoff = Backoff::default();
            loop {
                let (all, wished) =
                    (pods.borrow_and_update().clone(), roles.borrow_and_update().clone());
                let now = Moment::START + Seconds::from(started.elapsed());
                let rest = match self.write(&all, &wished, now, &mut known, &done).await {
                    Ok(()) => {
                        backoff.succeeded();
                        RETRY_INTERVAL
                    }
                    Err(error) => {
                        done(Mirrored::Failed);
                        tracing::warn!(
                            label = self.key,
                            "roles cannot be written as pod labels: {error}"
                        );
                        let delay = backoff.failed(fastrand::f64(), error.retry_after());
                        sleep(delay.to_duration()).await;
                        continue;
                    }
                };
                tokio::select! {
                    changed = roles.changed() => if changed.is_err() { return },
                    changed = pods.changed() => if changed.is_err() { return },
                    () = sleep(rest) => {}
                }
            }
        };
        tokio::select! {
            () = watching => {}
            () = writing => {}
        }
    }

    /// Writes labels that differ. The first failure ends the round; the rest is retried later.
    async fn write(
        &self,
        pods: &[Pod],
        roles: &[HostRole],
        now: Moment,
        known: &mut Known,
        done: &impl Fn(Mirrored),
    ) -> Result<(), KubeApiError> {
        for (pod, value) in wanted(&self.key, pods, roles) {
            if let Some(refusal) = self.refusal(pod, known).await? {
                if known.reported.insert(pod.metadata.uid.clone()) {
                    done(Mirrored::Refused(refusal));
                    self.report(pod, refusal).await;
                }
                continue;
            }
            if !known.writes.admit(&pod.metadata.uid, now) {
                continue;
            }
            match self.patch(pod, value).await {
                Ok(()) => done(Mirrored::Written),
                // The pod was deleted; the watch removes it.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let uids: BTreeSet<&String> = pods.iter().map(|pod| &pod.metadata.uid).collect();
        known.reported.retain(|uid| uids.contains(uid));
        Ok(())
    }

    /// Returns why the pod's label may not be written; `None` if it may.
    async fn refusal(
        &self,
        pod: &Pod,
        known: &mut Known,
    ) -> Result<Option<LabelRefusal>, KubeApiError> {
        let Some(owner) = controller(pod) else { return Ok(None) };
        let Some(path) = owner_path(&self.namespace, owner) else {
            return Ok(Some(LabelRefusal::Owner));
        };
        let selects = match known.owners.get(&path) {
            Some(selects) => *selects,
            None => {
                let reading = async { api::get(&self.access, &path).await?.read_list().await };
                let workload: Workload = serde_json::from_slice(&within(reading).await?)?;
                // A selector cannot be changed; a new workload has another name or path.
                *known.owners.entry(path).or_insert(workload.selects_by(&self.key))
            }
        };
        Ok(selects.then_some(LabelRefusal::Selector))
    }

    async fn patch(&self, pod: &Pod, value: &str) -> Result<(), KubeApiError> {
        let name = &pod.metadata.name;
        let path =
            format!("/api/v1/namespaces/{}/pods/{name}?fieldManager=tidegate", self.namespace);
        // The uid is a precondition: a new pod of the same name is not changed.
        let patch = json!({"metadata": {"uid": pod.metadata.uid, "labels": {&self.key: value}}});
        let body = Some(("application/merge-patch+json", Bytes::from(patch.to_string())));
        within(async {
            let answer = api::send(&self.access, Method::PATCH, &path, body).await?;
            answer.read_list().await.map(drop)
        })
        .await
    }

    /// Reports the refusal by an Event on the pod. The Event is lost if the API server refuses it.
    async fn report(&self, pod: &Pod, refusal: LabelRefusal) {
        let (name, key) = (&pod.metadata.name, &self.key);
        let why = match refusal {
            LabelRefusal::Selector => {
                "its owner selects pods by this label and would replace the pod"
            }
            LabelRefusal::Owner => "the selector of its owner is unknown to tidegate",
        };
        let message = format!("the label {key} is not written: {why}");
        tracing::warn!(pod = name, reason = refusal.as_str(), "{message}");
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": format!("{name}.{:016x}", fastrand::u64(..)), "namespace": self.namespace},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": self.namespace,
                "name": name, "uid": pod.metadata.uid
            },
            "reason": "RoleLabelRefused",
            "message": message,
            "type": "Warning",
            "source": {"component": "tidegate"},
            "count": 1
        });
        let path = format!("/api/v1/namespaces/{}/events", self.namespace);
        let body = Some(("application/json", Bytes::from(event.to_string())));
        let sending = async {
            let answer = api::send(&self.access, Method::POST, &path, body).await?;
            answer.read_list().await
        };
        if let Err(error) = within(sending).await {
            tracing::debug!("the Kubernetes event was not written: {error}");
        }
    }
}

async fn within<T>(what: impl Future<Output = Result<T, KubeApiError>>) -> Result<T, KubeApiError> {
    timeout(TIMEOUT, what).await.unwrap_or(Err(KubeApiError::Late(TIMEOUT)))
}
