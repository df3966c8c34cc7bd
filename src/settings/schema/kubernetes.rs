//! `[kubernetes]`, and how pods become backends.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use crate::defaults;

/// `[kubernetes]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesSettings {
    /// URL of the API server; absent: that of the cluster in which this pod runs, with its service
    /// account.
    pub api_server: Option<String>,
    /// Certificate authorities of the API server, PEM; absent: those of the service account.
    pub ca_file: Option<PathBuf>,
    /// Bearer token, read for each request; absent: that of the service account. Sent over TLS and to
    /// loopback addresses only.
    pub token_file: Option<PathBuf>,
    /// Client certificate for the API server, PEM; with `client_key`.
    pub client_cert: Option<PathBuf>,
    /// Private key of `client_cert`, PEM.
    pub client_key: Option<PathBuf>,
    /// Namespace of names without one; absent: that of this pod.
    pub namespace: Option<String>,
    /// Write roles as labels of the engines' pods; absent: no pod is changed.
    pub role_labels: Option<RoleLabelSettings>,
}

/// `[kubernetes.role_labels]`: the role in force of each backend as a label of its pod. A label that the
/// selector of the pod's owner contains is never written: the owner would replace the pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoleLabelSettings {
    /// Key of the label: `tidegate.dev/role`, or `llm-d.ai/role` for llm-d's endpoint picker.
    pub label: String,
    /// Label selector of the engines' pods, as `kubectl -l` takes it.
    pub selector: String,
    /// Namespace of the pods; absent: `kubernetes.namespace`.
    pub namespace: Option<String>,
}

/// Conventions of projects for pod labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// llm-d: `llm-d.ai/role`.
    #[default]
    LlmD,
    /// AIBrix: `role-name`, and engine, port and model from `model.aibrix.ai/…`.
    Aibrix,
    /// KServe's LLMInferenceService: llm-d's role label.
    Kserve,
    /// vLLM production-stack: label `model`; a pod with `sleeping=true` receives no requests.
    ProductionStack,
    /// LeaderWorkerSet: leaders only.
    Lws,
    /// DisaggregatedSet: `disaggregatedset.x-k8s.io/role`.
    Disaggregatedset,
    /// RoleBasedGroup: `rbg.workloads.x-k8s.io/role-name`.
    Rbg,
    /// NVIDIA Dynamo: `nvidia.com/dynamo-component-type` and its sub-component type.
    Dynamo,
}

/// Pods that are backends, and their ports.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PodSettings {
    /// Namespace of the pods; absent: `kubernetes.namespace`.
    pub namespace: Option<String>,
    /// Convention of the labels for role, engine and ports.
    pub preset: Preset,
    /// Label selector of the pods, as `kubectl -l` takes it; absent: the preset's.
    pub selector: Option<String>,
    /// Name of an InferencePool, whose selector and target ports are used instead.
    pub inference_pool: Option<String>,
    /// Label that holds the role, in place of the preset's.
    pub role_label: Option<String>,
    /// Ports of the engine in a pod, one to eight; each port is a backend (data-parallel ranks).
    pub ports: Vec<u16>,
    /// Whether tidegate writes the role label itself ([`RoleLabelSettings::label`]): then `draining` is
    /// a role in force, and the pod is an engine.
    #[serde(skip)]
    pub is_mirrored: bool,
}

impl Default for PodSettings {
    fn default() -> Self {
        PodSettings {
            namespace: None,
            preset: Preset::default(),
            selector: None,
            inference_pool: None,
            role_label: None,
            ports: vec![defaults::ENGINE_PORT],
            is_mirrored: false,
        }
    }
}
