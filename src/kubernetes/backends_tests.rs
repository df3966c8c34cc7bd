//! Conversion of each project's pods to backends.

use serde_json::{Value, json};
use tidegate_settings::{BackendSettings, Connector, EngineName, PodSettings, Preset};
use tidegate_types::Role;

use crate::backends::of_pod;
use crate::pod::Pod;

/// A ready pod with these labels and annotations.
fn pod(labels: Value, annotations: Value) -> Value {
    json!({
        "metadata": {
            "name": "p-0", "uid": "u-1", "labels": labels, "annotations": annotations,
            "managedFields": [{"manager": "kubelet"}]
        },
        "spec": {"nodeName": "n", "containers": [{"name": "vllm"}]},
        "status": {
            "phase": "Running",
            "podIP": "10.1.2.3",
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]
        }
    })
}

fn template() -> BackendSettings {
    BackendSettings {
        name: "llm".into(),
        engine: EngineName::Vllm,
        connector: Connector::Nixl,
        streams_max: 64,
        ..BackendSettings::default()
    }
}

fn backends(pod: &Value, preset: Preset, ports: &[u16]) -> Vec<BackendSettings> {
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    let rules = PodSettings { preset, ports: ports.to_vec(), ..PodSettings::default() };
    of_pod(&pod, &template(), &rules, None)
}

/// Returns the role of the only backend; `None` without a backend.
fn role(preset: Preset, labels: Value) -> Option<Option<Role>> {
    backends(&pod(labels, json!({})), preset, &[8000]).first().map(|backend| backend.role)
}

#[test]
fn each_project_names_roles_by_its_own_label() {
    let (prefill, decode, mixed) = (Some(Role::Prefill), Some(Role::Decode), Some(Role::Mixed));
    for (preset, key, value, expected) in [
        (Preset::LlmD, "llm-d.ai/role", "prefill", Some(prefill)),
        (Preset::LlmD, "llm-d.ai/role", "decode", Some(decode)),
        (Preset::LlmD, "llm-d.ai/role", "prefill-decode", Some(mixed)),
        (Preset::LlmD, "llm-d.ai/role", "both", Some(mixed)),
        (Preset::LlmD, "llm-d.ai/role", "encode-prefill-decode", Some(mixed)),
        (Preset::LlmD, "llm-d.ai/role", "encode-prefill", Some(prefill)),
        (Preset::LlmD, "llm-d.ai/role", "encode", None),
        (Preset::LlmD, "llm-d.ai/role", "draining", None),
        (Preset::LlmD, "app", "vllm", Some(None)),
        (Preset::Kserve, "llm-d.ai/role", "decode", Some(decode)),
        (Preset::Aibrix, "role-name", "prefill", Some(prefill)),
        (Preset::Aibrix, "role-name", "standard", Some(None)),
        (Preset::ProductionStack, "model", "decode", Some(decode)),
        (Preset::ProductionStack, "model", "llama", Some(None)),
        (Preset::Disaggregatedset, "disaggregatedset.x-k8s.io/role", "prefill", Some(prefill)),
        (Preset::Disaggregatedset, "disaggregatedset.x-k8s.io/role", "router", None),
        (Preset::Rbg, "rbg.workloads.x-k8s.io/role-name", "decode", Some(decode)),
        (Preset::Rbg, "rolebasedgroup.workloads.x-k8s.io/role", "decode", Some(decode)),
        (Preset::Rbg, "rbg.workloads.x-k8s.io/role-name", "router", None),
        (Preset::Dynamo, "nvidia.com/dynamo-component-type", "worker", Some(mixed)),
        (Preset::Dynamo, "nvidia.com/dynamo-component-type", "frontend", None),
        (Preset::Lws, "leaderworkerset.sigs.k8s.io/worker-index", "0", Some(None)),
        (Preset::Lws, "leaderworkerset.sigs.k8s.io/worker-index", "1", None),
        (Preset::LlmD, "leaderworkerset.sigs.k8s.io/worker-index", "3", None),
        (Preset::ProductionStack, "sleeping", "true", None),
        (Preset::ProductionStack, "sleeping", "false", Some(None)),
    ] {
        assert_eq!(role(preset, json!({key: value})), expected, "{preset:?} {key}={value}");
    }
    let both = json!({
        "nvidia.com/dynamo-component-type": "worker",
        "nvidia.com/dynamo-sub-component-type": "prefill"
    });
    assert_eq!(role(Preset::Dynamo, both), Some(prefill), "the sub-component is more precise");
}

#[test]
fn a_label_of_the_settings_replaces_the_presets() {
    let pod: Pod = serde_json::from_value(pod(
        json!({"tier": "decode", "llm-d.ai/role": "prefill"}),
        json!({}),
    ))
    .unwrap();
    let rules = PodSettings { role_label: Some("tier".into()), ..PodSettings::default() };
    assert_eq!(of_pod(&pod, &template(), &rules, None)[0].role, Some(Role::Decode));
}

#[test]
fn a_pinned_role_of_the_settings_stays() {
    let pod: Pod =
        serde_json::from_value(pod(json!({"llm-d.ai/role": "prefill"}), json!({}))).unwrap();
    let pinned = BackendSettings { role: Some(Role::Decode), pin: true, ..template() };
    let rules = PodSettings::default();
    assert_eq!(of_pod(&pod, &pinned, &rules, None)[0].role, Some(Role::Decode));
    let free = BackendSettings { role: Some(Role::Decode), ..template() };
    assert_eq!(of_pod(&pod, &free, &rules, None)[0].role, Some(Role::Prefill));
}

#[test]
fn a_pod_has_the_templates_settings_and_its_own_address() {
    let found = backends(&pod(json!({}), json!({})), Preset::LlmD, &[8200]);
    let [backend] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((backend.name.as_str(), backend.url.as_str()), ("p-0", "http://10.1.2.3:8200"));
    assert_eq!((backend.connector, backend.streams_max), (Connector::Nixl, 64));
    let tls = BackendSettings { url: "https://pods/base/".into(), ..template() };
    let pod: Pod = serde_json::from_value(pod(json!({}), json!({}))).unwrap();
    let pod =
        Pod { status: crate::pod::PodStatus { pod_ip: "fd00::7".into(), ..pod.status }, ..pod };
    let found = of_pod(&pod, &tls, &PodSettings::default(), None);
    assert_eq!(found[0].url, "https://[fd00::7]:8000/base");
    assert_eq!(found[0].uid.as_deref(), Some("u-1"));
}

#[test]
fn several_ports_are_data_parallel_ranks() {
    let ports = |annotations, ports: &[u16]| -> Vec<(String, String)> {
        let found = backends(&pod(json!({}), annotations), Preset::LlmD, ports);
        found
            .into_iter()
            .map(|one| (one.name, one.url.rsplit(':').next().unwrap().into()))
            .collect()
    };
    let names = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter().map(|(name, port)| ((*name).into(), (*port).into())).collect()
    };
    assert_eq!(ports(json!({}), &[8000]), names(&[("p-0", "8000")]));
    let two = names(&[("p-0-8000", "8000"), ("p-0-8001", "8001")]);
    assert_eq!(ports(json!({}), &[8000, 8001]), two);
    let active = json!({"llm-d.ai/active-ports": "8001, 9999"});
    assert_eq!(ports(active, &[8000, 8001]), names(&[("p-0-8001", "8001")]));
    let pod: Pod = serde_json::from_value(pod(json!({}), json!({}))).unwrap();
    let of_pool = of_pod(&pod, &template(), &PodSettings::default(), Some(&[1, 2]));
    assert_eq!(of_pool.len(), 2, "the InferencePool's ports come before the settings'");
}

#[test]
fn engine_model_and_ports_are_read_from_labels_and_annotations() {
    let labels = json!({
        "role-name": "prefill",
        "model.aibrix.ai/name": "llama", "model.aibrix.ai/engine": "sglang", "model.aibrix.ai/port": "30000"
    });
    let annotations = json!({"model.aibrix.ai/sglang-bootstrap-port": "9100"});
    let found = backends(&pod(labels, annotations), Preset::Aibrix, &[8000]);
    let [backend] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((backend.engine, backend.connector), (EngineName::Sglang, Connector::None));
    assert_eq!((backend.url.as_str(), backend.bootstrap_port), ("http://10.1.2.3:30000", 9100));
    assert_eq!(backend.models, ["llama"]);
    let annotated = json!({"sglang.ai/bootstrap-port": "9200"});
    let found =
        backends(&pod(json!({"llm-d.ai/engine-type": "vllm"}), annotated), Preset::LlmD, &[1]);
    assert_eq!((found[0].bootstrap_port, found[0].connector), (9200, Connector::Nixl));
}

#[test]
fn only_a_ready_pod_takes_new_work() {
    let is_backend = |edit: &dyn Fn(&mut Value)| {
        let mut pod = pod(json!({}), json!({}));
        edit(&mut pod);
        !backends(&pod, Preset::LlmD, &[8000]).is_empty()
    };
    assert!(is_backend(&|_| {}));
    assert!(!is_backend(&|pod| pod["status"]["conditions"][1]["status"] = json!("False")));
    assert!(!is_backend(&|pod| pod["status"]["phase"] = json!("Succeeded")));
    assert!(!is_backend(&|pod| pod["status"]["podIP"] = json!("")));
    assert!(!is_backend(&|pod| pod["status"]["podIP"] = json!("not-an-address")));
    assert!(!is_backend(
        &|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-11-26T15:00:00Z")
    ));
    assert!(!is_backend(&|pod| *pod = json!({"metadata": {"name": "bare"}})));
    let gated = |status: &str| {
        is_backend(&|pod| {
            pod["spec"]["readinessGates"] = json!([{"conditionType": "example.com/warm"}]);
            let condition = json!({"type": "example.com/warm", "status": status});
            pod["status"]["conditions"].as_array_mut().unwrap().push(condition);
        })
    };
    assert!(gated("True"));
    assert!(!gated("False"));
    assert!(!is_backend(&|pod| {
        pod["spec"]["readinessGates"] = json!([{"conditionType": "example.com/absent"}]);
    }));
}
