//! Converts a pod to backends: none if it takes no new work, else one per port (data-parallel ranks have
//! one port each).

use std::net::{IpAddr, Ipv6Addr};
use tidegate_settings::{BackendSettings, Connector, EngineName, PodSettings};

use crate::convention::{self, Standing};
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
    let standing = convention::standing(labels, rules);
    let (Standing::Engine(role), true) = (standing, pod.is_ready()) else { return Vec::new() };
    let Ok(ip) = pod.status.pod_ip.parse::<IpAddr>() else { return Vec::new() };
    let configured = pool.filter(|ports| !ports.is_empty()).unwrap_or(&rules.ports);
    let ports = convention::ports(annotations, labels, configured);
    let ranks = configured.len() > 1;
    let one = |(rank, port): (usize, u16)| {
        let mut settings = template.clone();
        settings.name = match ranks {
            true => format!("{}-{port}", pod.metadata.name),
            false => pod.metadata.name.clone(),
        };
        settings.url = url(template, ip, port);
        settings.ip = Some(ip);
        settings.uid = Some(pod.metadata.uid.clone());
        settings.kubernetes = None;
        for endpoint in [&mut settings.kv_events, &mut settings.kv_replay].into_iter().flatten() {
            *endpoint = of_rank(endpoint, ip, rank);
        }
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

/// The endpoint of KV events at the pod's address. Its port increases with the data-parallel rank
/// (docs/spec/engine-protocols.md#vllm-kv-events).
fn of_rank(endpoint: &str, ip: IpAddr, rank: usize) -> String {
    let port = endpoint.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':'));
    match port.and_then(|(_, port)| port.parse::<usize>().ok()) {
        Some(port) => format!("tcp://{}:{}", host(ip), port + rank),
        None => endpoint.to_owned(),
    }
}

/// The template's scheme and path with the pod's address.
fn url(template: &BackendSettings, ip: IpAddr, port: u16) -> String {
    let scheme = if template.url.starts_with("https://") { "https" } else { "http" };
    let after = template.url.split_once("://").map_or("", |(_, after)| after);
    let path = after.split_once('/').map_or("", |(_, path)| path).trim_end_matches('/');
    let slash = if path.is_empty() { "" } else { "/" };
    format!("{scheme}://{}:{port}{slash}{path}", host(ip))
}

fn host(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => bracketed(ip),
    }
}

fn bracketed(ip: Ipv6Addr) -> String {
    format!("[{ip}]")
}

fn named(engine: &str) -> Option<EngineName> {
    match engine {
        "vllm" => Some(EngineName::Vllm),
        "sglang" => Some(EngineName::Sglang),
        "trtllm" => Some(EngineName::Trtllm),
        _ => None,
    }
}
