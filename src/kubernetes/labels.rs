//! Roles as labels of pods: for operators, Services, monitors and llm-d's endpoint picker. Pure.
//!
//! A label that is part of a workload's selector must not change: its ReplicaSet would release the pod and
//! start another in its place. KServe and llm-d's charts select on `llm-d.ai/role`.

use serde::Deserialize;
use std::collections::BTreeMap;
use tidegate_types::{Moment, Role, Seconds};

use crate::pod::{Labels, OwnerReference, Pod};

/// llm-d's key; its values differ from tidegate's for two roles.
const LLM_D: &str = "llm-d.ai/role";
/// Shortest time between two writes of one pod.
const WRITE_GAP: Seconds = Seconds(1.0);

/// A backend's host, as in its URL, and its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRole {
    /// Address, or name whose first label is the pod's (`vllm-0.vllm`).
    pub host: String,
    /// Its role.
    pub role: Role,
}

/// Returns the label's value for a role. llm-d sends no requests to a pod with an unknown value.
pub fn value(key: &str, role: Role) -> &'static str {
    match (key, role) {
        (LLM_D, Role::Mixed) => "prefill-decode",
        (_, role) => role.as_str(),
    }
}

/// Returns the pods whose label differs from the role of their backends, with the new value.
/// Backends of one pod with several roles are `mixed`.
pub fn wanted<'a>(
    key: &str,
    pods: impl IntoIterator<Item = &'a Pod>,
    roles: &[HostRole],
) -> Vec<(&'a Pod, &'static str)> {
    let mut by_host: BTreeMap<&str, Role> = BTreeMap::new();
    for HostRole { host, role } in roles {
        let of_pod = by_host.entry(pod_part(host)).or_insert(*role);
        if of_pod != role {
            *of_pod = Role::Mixed;
        }
    }
    let role = |pod: &Pod| {
        let by_address =
            by_host.get(pod.status.pod_ip.as_str()).filter(|_| !pod.status.pod_ip.is_empty());
        by_address.or_else(|| by_host.get(pod.metadata.name.as_str())).copied()
    };
    let change = |pod: &'a Pod| {
        let value = value(key, role(pod)?);
        let differs = pod.metadata.labels.get(key).map(String::as_str) != Some(value);
        (differs && pod.metadata.deletion_timestamp.is_none()).then_some((pod, value))
    };
    pods.into_iter().filter_map(change).collect()
}

/// Returns an address unchanged, and the first label of a name.
fn pod_part(host: &str) -> &str {
    match host.parse::<std::net::IpAddr>() {
        Ok(_) => host,
        Err(_) => host.split('.').next().unwrap_or(host),
    }
}

/// Why a label may not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelRefusal {
    /// The workload selects its pods by the label.
    Selector,
    /// tidegate does not know the selector of this kind of workload.
    Owner,
}

impl LabelRefusal {
    /// The value in logs, events and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            LabelRefusal::Selector => "selector",
            LabelRefusal::Owner => "owner",
        }
    }
}

/// Returns the workload whose selector decides; `None`: the pod has no controller.
pub fn controller(pod: &Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.iter().find(|owner| owner.controller)
}

/// Returns the API path of a workload whose selector is read; `None` for other kinds.
pub fn owner_path(namespace: &str, owner: &OwnerReference) -> Option<String> {
    let plural = match (owner.api_version.as_str(), owner.kind.as_str()) {
        ("apps/v1", "ReplicaSet") => "replicasets",
        ("apps/v1", "StatefulSet") => "statefulsets",
        _ => return None,
    };
    Some(format!("/apis/apps/v1/namespaces/{namespace}/{plural}/{}", owner.name))
}

/// The selector of a workload.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Workload {
    spec: WorkloadSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WorkloadSpec {
    selector: Selector,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    match_labels: Labels,
    match_expressions: Vec<Expression>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Expression {
    key: String,
}

impl Workload {
    /// Returns whether its selector contains the key.
    pub fn selects_by(&self, key: &str) -> bool {
        let Selector { match_labels, match_expressions } = &self.spec.selector;
        match_labels.contains_key(key) || match_expressions.iter().any(|one| one.key == key)
    }
}

/// Time of the last write of each pod.
#[derive(Debug, Default)]
pub struct Writes(BTreeMap<String, Moment>);

impl Writes {
    /// Returns whether the pod may be written now, and records the write.
    pub fn admit(&mut self, uid: &str, now: Moment) -> bool {
        match self.0.get(uid) {
            Some(before) if now - *before < WRITE_GAP => false,
            _ => {
                // Entries of deleted pods are removed too.
                self.0.retain(|_, before| now - *before < WRITE_GAP);
                self.0.insert(uid.to_owned(), now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const KEY: &str = "tidegate.dev/role";

    fn pod(name: &str, ip: &str, label: Option<&str>) -> Pod {
        let labels = label.map_or(json!({}), |value| json!({KEY: value}));
        let pod = json!({"metadata": {"name": name, "labels": labels}, "status": {"podIP": ip}});
        serde_json::from_value(pod).unwrap()
    }

    fn role(host: &str, role: Role) -> HostRole {
        HostRole { host: host.to_owned(), role }
    }

    #[test]
    fn only_labels_that_differ_are_written() {
        let pods = [
            pod("a", "10.0.0.1", None),
            pod("b", "10.0.0.2", Some("prefill")),
            pod("c", "10.0.0.3", Some("decode")),
            pod("vllm-0", "10.0.0.4", None),
            pod("stranger", "10.0.0.9", None),
            pod("pending", "", None),
        ];
        let roles = [
            role("10.0.0.1", Role::Decode),
            role("10.0.0.2", Role::Prefill),
            role("10.0.0.3", Role::Draining),
            role("vllm-0.vllm.llm.svc", Role::Mixed),
            role("fd00::1", Role::Decode),
        ];
        let found: Vec<_> = wanted(KEY, &pods, &roles)
            .into_iter()
            .map(|(pod, value)| (pod.metadata.name.as_str(), value))
            .collect();
        assert_eq!(found, [("a", "decode"), ("c", "draining"), ("vllm-0", "mixed")]);
    }

    #[test]
    fn ranks_of_one_pod_with_two_roles_are_mixed() {
        let pods = [pod("a", "10.0.0.1", None)];
        let roles = [role("10.0.0.1", Role::Decode), role("10.0.0.1", Role::Prefill)];
        assert_eq!(wanted(KEY, &pods, &roles)[0].1, "mixed");
        assert_eq!(value("llm-d.ai/role", Role::Mixed), "prefill-decode");
        assert_eq!(value("llm-d.ai/role", Role::Draining), "draining", "of no work in llm-d");
    }

    #[test]
    fn a_pod_that_is_being_deleted_is_left_alone() {
        let mut leaving = pod("a", "10.0.0.1", None);
        leaving.metadata.deletion_timestamp = Some("2026-11-26T15:00:00Z".into());
        assert!(wanted(KEY, [&leaving], &[role("10.0.0.1", Role::Decode)]).is_empty());
    }

    #[test]
    fn the_selector_of_the_owner_decides() {
        let workload = |selector| -> Workload {
            serde_json::from_value(json!({"spec": {"selector": selector, "replicas": 2}})).unwrap()
        };
        let by_label = workload(json!({"matchLabels": {"app": "a", KEY: "decode"}}));
        let expression = json!({"key": KEY, "operator": "Exists"});
        let by_expression = workload(json!({"matchExpressions": [expression]}));
        let by_app = workload(json!({"matchLabels": {"app": "a"}}));
        assert!(
            by_label.selects_by(KEY) && by_expression.selects_by(KEY) && !by_app.selects_by(KEY)
        );
        let owner = |api_version: &str, kind: &str| OwnerReference {
            api_version: api_version.into(),
            kind: kind.into(),
            name: "w".into(),
            controller: true,
        };
        let path = "/apis/apps/v1/namespaces/llm/replicasets/w";
        assert_eq!(owner_path("llm", &owner("apps/v1", "ReplicaSet")).as_deref(), Some(path));
        assert_eq!(owner_path("llm", &owner("example.com/v1", "ReplicaSet")), None);
    }

    #[test]
    fn a_pod_is_written_once_a_second() {
        let mut writes = Writes::default();
        let at = |seconds| Moment::START + Seconds(seconds);
        assert!(writes.admit("a", at(1.0)) && writes.admit("b", at(1.0)));
        assert!(!writes.admit("a", at(1.9)));
        assert!(writes.admit("a", at(2.0)));
    }
}
