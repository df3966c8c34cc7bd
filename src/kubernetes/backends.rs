//! Converts a pod to backends: none if it takes no new work, else one per port (data-parallel ranks have
//! one port each).

use std::net::IpAddr;
use tidegate_settings::discovered::host_of;
use tidegate_settings::{BackendSettings, Connector, EngineName, PodSettings};

use crate::convention::{self, PodKind};
use crate::pod::Pod;

/// Returns the backends of a pod: the settings of `template` (the entry of `[[backends]]` that stands
/// for the pods) with the pod's name, uid, address, role and engine. `pool` are the ports of its
/// InferencePool, which come before those of the settings.
pub fn of_pod(
    pod: &Pod,
    template: &BackendSettings,
    rules: &PodSettings,
    pool: Option<&[u16]>,
) -> Vec<BackendSettings> {
    let (labels, annotations) = (&pod.metadata.labels, &pod.metadata.annotations);
    let pod_kind = convention::pod_kind(labels, rules);
    let (PodKind::Engine(role), true) = (pod_kind, pod.is_ready()) else { return Vec::new() };
    let Ok(ip) = pod.status.pod_ip.parse::<IpAddr>() else { return Vec::new() };
    let configured = pool.filter(|ports| !ports.is_empty()).unwrap_or(&rules.ports);
    let ports = convention::ports(annotations, labels, configured);
    let ranks = configured.len() > 1;
    let one = |(rank, port): (usize, u16)| {
        let name = match ranks {
            true => format!("{}-{port}", pod.metadata.name),
            false => pod.metadata.name.clone(),
        };
        let mut settings = template.at(name, &host_of(ip), ip, port, rank);
        settings.uid = Some(pod.metadata.uid.clone());
        // A role that the settings pin holds; otherwise the label's is where the planner begins.
        if !template.pin || template.role.is_none() {
            settings.role = role.or(template.role);
        }
        if let Some(engine) = convention::engine(labels).and_then(named) {
            // Each connector belongs to one engine kind, so that the template's does not apply to another.
            if engine != settings.engine {
                settings.connector = Connector::default();
            }
            settings.engine = engine;
        }
        if let Some(model) = convention::model(labels).filter(|_| settings.models.is_empty()) {
            settings.models = vec![model.to_owned()];
        }
        if let Some(port) = convention::bootstrap_port(annotations, labels) {
            settings.bootstrap_port = port;
        }
        settings
    };
    let rank = |port: &u16| configured.iter().position(|known| known == port).unwrap_or(0);
    ports.into_iter().map(|port| one((rank(&port), port))).collect()
}

fn named(engine: &str) -> Option<EngineName> {
    match engine {
        "vllm" => Some(EngineName::Vllm),
        "sglang" => Some(EngineName::Sglang),
        "trtllm" => Some(EngineName::Trtllm),
        _ => None,
    }
}
