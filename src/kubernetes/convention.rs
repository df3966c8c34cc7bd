//! Labels and annotations by which projects describe an engine's pod. Keys and values are those of
//! their documentation; sources are listed in docs/kubernetes/discovery.md.

use tidegate_settings::{PodSettings, Preset};
use tidegate_types::Role;

use crate::pod::Labels;

/// Kind of a pod, by its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodKind {
    /// The pod is an engine; its role if the label names one.
    Engine(Option<Role>),
    /// The pod takes no requests: an encoder, a front end, a worker of a multi-node engine, or a role
    /// that is unknown here.
    Other,
}

/// Index of a pod in a LeaderWorkerSet; only the leader, 0, serves requests.
const WORKER_INDEX: &str = "leaderworkerset.sigs.k8s.io/worker-index";
/// production-stack's label of an engine that sleeps.
const SLEEPING: &str = "sleeping";
/// Engine type: vllm, sglang, trtllm-serve; the older key second.
const ENGINE_TYPES: [&str; 3] =
    ["llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type", "model.aibrix.ai/engine"];
/// Annotations with the bootstrap port of SGLang's prefill engines.
const BOOTSTRAP_PORTS: [&str; 2] =
    ["sglang.ai/bootstrap-port", "model.aibrix.ai/sglang-bootstrap-port"];
/// llm-d's annotation: ports in use, a part of the pool's.
const ACTIVE_PORTS: &str = "llm-d.ai/active-ports";
/// AIBrix's port and model of an engine.
const AIBRIX_PORT: &str = "model.aibrix.ai/port";
const AIBRIX_MODEL: &str = "model.aibrix.ai/name";

/// Labels that hold the role, the first that is present decides.
fn role_labels(preset: Preset) -> &'static [&'static str] {
    match preset {
        Preset::LlmD | Preset::Kserve => &["llm-d.ai/role"],
        Preset::Aibrix => &["role-name"],
        Preset::ProductionStack => &["model"],
        Preset::Lws => &[],
        Preset::Disaggregatedset => &["disaggregatedset.x-k8s.io/role"],
        Preset::Rbg => {
            &["rbg.workloads.x-k8s.io/role-name", "rolebasedgroup.workloads.x-k8s.io/role"]
        }
        Preset::Dynamo => {
            &["nvidia.com/dynamo-sub-component-type", "nvidia.com/dynamo-component-type"]
        }
    }
}

/// Returns the label selector of a preset's engines.
pub fn selector(preset: Preset) -> &'static str {
    match preset {
        Preset::LlmD => "llm-d.ai/inference-serving=true",
        Preset::Aibrix => AIBRIX_MODEL,
        Preset::Kserve => "kserve.io/component=workload",
        Preset::ProductionStack => "model",
        Preset::Lws => "leaderworkerset.sigs.k8s.io/worker-index=0",
        Preset::Disaggregatedset => "disaggregatedset.x-k8s.io/name",
        Preset::Rbg => "rbg.workloads.x-k8s.io/role-name",
        Preset::Dynamo => "nvidia.com/dynamo-component-type",
    }
}

/// Returns whether the role of a pod is read from the label `key`.
pub fn reads_role_from(rules: &PodSettings, key: &str) -> bool {
    match &rules.role_label {
        Some(label) => label == key,
        None => role_labels(rules.preset).contains(&key),
    }
}

/// Reads the labels. The settings' `role_label` replaces the preset's labels of the role.
pub fn pod_kind(labels: &Labels, rules: &PodSettings) -> PodKind {
    let preset = rules.preset;
    let is_worker = labels.get(WORKER_INDEX).is_some_and(|index| index != "0");
    let sleeps = labels.get(SLEEPING).is_some_and(|value| value == "true");
    if is_worker || sleeps {
        return PodKind::Other;
    }
    let value = match &rules.role_label {
        Some(key) => labels.get(key),
        None => role_labels(preset).iter().find_map(|key| labels.get(*key)),
    };
    match value.map(String::as_str) {
        None => PodKind::Engine(None),
        Some(value) if rules.is_mirrored && value == Role::Draining.as_str() => {
            PodKind::Engine(None)
        }
        Some(value) => of_value(value, preset),
    }
}

fn of_value(value: &str, preset: Preset) -> PodKind {
    let role = match value {
        "prefill" | "encode-prefill" => Role::Prefill,
        "decode" | "encode-decode" => Role::Decode,
        "prefill-decode" | "both" | "encode-prefill-decode" | "mixed" => Role::Mixed,
        // Dynamo's aggregated worker.
        "worker" if preset == Preset::Dynamo => Role::Mixed,
        // AIBrix's other roles and production-stack's other models are whole engines.
        _ if matches!(preset, Preset::Aibrix | Preset::ProductionStack) => {
            return PodKind::Engine(None);
        }
        _ => return PodKind::Other,
    };
    PodKind::Engine(Some(role))
}

/// Returns the engine that a label names, in the spelling of `engine` in the settings.
pub fn engine(labels: &Labels) -> Option<&'static str> {
    let value = ENGINE_TYPES.iter().find_map(|key| labels.get(*key))?;
    match value.as_str() {
        "vllm" => Some("vllm"),
        "sglang" => Some("sglang"),
        "trtllm" | "trtllm-serve" | "tensorrt-llm" => Some("trtllm"),
        _ => None,
    }
}

/// Returns the model that AIBrix's label names: the name that its engine serves it under.
pub fn model(labels: &Labels) -> Option<&str> {
    labels.get(AIBRIX_MODEL).map(String::as_str).filter(|name| !name.is_empty())
}

/// Returns the bootstrap port that an annotation (or AIBrix's label) names.
pub fn bootstrap_port(annotations: &Labels, labels: &Labels) -> Option<u16> {
    let value = BOOTSTRAP_PORTS.iter().find_map(|key| annotations.get(*key).or(labels.get(*key)));
    value.and_then(|port| port.parse().ok()).filter(|port| *port > 0)
}

/// Returns the ports to use: those of the pool that llm-d's annotation names, or AIBrix's port.
pub fn ports(annotations: &Labels, labels: &Labels, pool: &[u16]) -> Vec<u16> {
    if let Some(port) = labels.get(AIBRIX_PORT).and_then(|port| port.parse().ok()) {
        return vec![port];
    }
    let Some(active) = annotations.get(ACTIVE_PORTS) else { return pool.to_vec() };
    let active: Vec<u16> = active.split(',').filter_map(|port| port.trim().parse().ok()).collect();
    pool.iter().copied().filter(|port| active.contains(port)).collect()
}
