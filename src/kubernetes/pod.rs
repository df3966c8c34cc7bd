//! The parts of a Pod, of an InferencePool and of a list that are read. Unknown fields are skipped while
//! parsing, so that a list of 1,000 pods holds no pod specs.

use serde::Deserialize;
use std::collections::BTreeMap;

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// `metadata` of any object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Unique in its namespace at a time.
    pub name: String,
    /// Unique over time: a recreated pod of the same name has another uid.
    pub uid: String,
    /// Version for the next watch.
    pub resource_version: String,
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
    /// Present once the object is being deleted.
    pub deletion_timestamp: Option<String>,
    /// The objects that own it.
    pub owner_references: Vec<OwnerReference>,
}

/// An entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// For example `apps/v1`.
    pub api_version: String,
    /// For example `ReplicaSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Whether it is the controller: at most one is.
    pub controller: bool,
}

/// An object with metadata.
pub trait Object {
    /// Its metadata.
    fn metadata(&self) -> &Metadata;
    /// Its metadata, to change.
    fn metadata_mut(&mut self) -> &mut Metadata;
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// Desired state.
    pub spec: PodSpec,
    /// State reported by the kubelet.
    pub status: PodStatus,
}

/// `spec` of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Conditions that have to be true beside the containers' readiness.
    pub readiness_gates: Vec<ReadinessGate>,
}

/// An entry of `spec.readinessGates`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReadinessGate {
    /// Type of the condition.
    pub condition_type: String,
}

/// `status` of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`.
    pub phase: String,
    /// Its address; empty until it has one.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// An entry of `status.conditions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// `Ready`, or a readiness gate's.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

impl Object for Pod {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }
}

impl Pod {
    /// Returns whether the pod takes new work: running, with an address, ready with every readiness
    /// gate, and not being deleted.
    pub fn is_ready(&self) -> bool {
        let is_true = |kind: &str| {
            let mut conditions = self.status.conditions.iter();
            conditions.any(|condition| condition.kind == kind && condition.status == "True")
        };
        self.metadata.deletion_timestamp.is_none()
            && self.status.phase == "Running"
            && !self.status.pod_ip.is_empty()
            && is_true("Ready")
            && self.spec.readiness_gates.iter().all(|gate| is_true(&gate.condition_type))
    }
}

/// An InferencePool (`inference.networking.k8s.io/v1`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct InferencePool {
    /// Name.
    pub metadata: Metadata,
    /// Selector and ports.
    pub spec: InferencePoolSpec,
}

/// `spec` of an InferencePool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InferencePoolSpec {
    /// Labels of its pods.
    pub selector: PoolSelector,
    /// One to eight ports; several are data-parallel ranks of one engine.
    pub target_ports: Vec<TargetPort>,
}

/// `spec.selector` of an InferencePool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolSelector {
    /// Labels that a pod must have.
    pub match_labels: Labels,
}

/// An entry of `spec.targetPorts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TargetPort {
    /// The port.
    pub number: u16,
}

impl Object for InferencePool {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }
}

impl InferencePool {
    /// Returns its pods' label selector, as a list request takes it.
    pub fn selector(&self) -> String {
        let labels = self.spec.selector.match_labels.iter();
        labels.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }

    /// Returns its ports.
    pub fn ports(&self) -> Vec<u16> {
        self.spec.target_ports.iter().map(|port| port.number).collect()
    }
}

/// A page of a list.
#[derive(Debug, Deserialize)]
pub struct ObjectList<T> {
    /// `resourceVersion` and `continue`.
    #[serde(default)]
    pub metadata: ListMetadata,
    /// The objects.
    #[serde(default = "Vec::new")]
    pub items: Vec<T>,
}

/// `metadata` of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMetadata {
    /// resourceVersion at which a watch starts.
    pub resource_version: String,
    /// Token of the next page; empty on the last.
    #[serde(rename = "continue")]
    pub next: String,
}
