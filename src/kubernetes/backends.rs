//! From a pod to the backends that it is: none if it takes no new work, one, or one for each port where
//! several data-parallel ranks share an engine.

use std::net::{IpAddr, Ipv6Addr};
use tidegate_settings::{BackendSettings, Connector, EngineName, PodSettings};

use crate::convention::{self, Standing};
use crate::pod::Pod;

/// A backend that a pod is.
#[derive(Clone, Debug, PartialEq)]
pub struct PodBackend {
    /// The template's settings with the pod's name, address, role and engine.
    pub settings: BackendSettings,
    /// The pod's uid: another uid under the same name is another engine.
    pub uid: String,
}

/// Returns the backends of a pod. `template` is the entry of `[[backends]]` that names the pods, and
/// `pool` are the ports of its InferencePool, which come before those of the settings.
pub fn of_pod(
    pod: &Pod,
    template: &BackendSettings,
    rules: &PodSettings,
    pool: Option<&[u16]>,
) -> Vec<PodBackend> {
    let (labels, annotations) = (&pod.metadata.labels, &pod.metadata.annotations);
    let standing = convention::standing(labels, rules.preset, rules.role_label.as_deref());
    let (Standing::Engine(role), true) = (standing, pod.is_ready()) else { return Vec::new() };
    let Ok(ip) = pod.status.pod_ip.parse::<IpAddr>() else { return Vec::new() };
    let configured = pool.filter(|ports| !ports.is_empty()).unwrap_or(&rules.ports);
    let ports = convention::ports(annotations, labels, configured);
    let ranks = configured.len() > 1;
    let one = |port: u16| {
        let mut settings = template.clone();
        settings.name = match ranks {
            true => format!("{}-{port}", pod.metadata.name),
            false => pod.metadata.name.clone(),
        };
        settings.url = url(template, ip, port);
        settings.ip = Some(ip);
        settings.kubernetes = None;
        // A role that the settings pin holds; otherwise the label's is where the planner begins.
        if !template.pin || template.role.is_none() {
            settings.role = role.or(template.role);
        }
        if let Some(engine) = convention::engine(labels).and_then(named) {
            // A connector is one engine's: that of the template says nothing about another.
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
        PodBackend { settings, uid: pod.metadata.uid.clone() }
    };
    ports.into_iter().map(one).collect()
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
