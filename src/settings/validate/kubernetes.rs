//! Checks of `[kubernetes]`.

use super::Findings;
use crate::schema::{BackendSettings, Settings};

/// Most ports of a pod, as in an InferencePool.
const PORTS_MAX: usize = 8;

pub(super) fn kubernetes(settings: &Settings, found: &mut Findings) {
    let api = &settings.kubernetes;
    if let Some(url) = &api.api_server {
        let checked = super::check_base_url(url);
        let problem = checked.err().unwrap_or_default();
        found.check(checked.is_ok(), "kubernetes.api_server", problem, "https://host:6443");
    }
    let both = api.client_cert.is_some() == api.client_key.is_some();
    let (cert, key) = ("kubernetes.client_cert", "kubernetes.client_key");
    found.check_with(both, cert, &[key], "and client_key are used together", "set both or neither");
    name(api.namespace.as_deref(), "kubernetes.namespace", found);
    let Some(labels) = &api.role_labels else { return };
    name(labels.namespace.as_deref(), "kubernetes.role_labels.namespace", found);
    let selector = !labels.selector.trim().is_empty();
    found.required(selector, "kubernetes.role_labels.selector", "the engines' pods, as kubectl -l");
    let key = "kubernetes.role_labels.label";
    if found.required(!labels.label.is_empty(), key, "tidegate.dev/role") {
        let problem = format!("{:?} is not a label key", labels.label);
        found.check(is_label(&labels.label), key, &problem, "tidegate.dev/role");
    }
}

/// Checks the pods of a backend.
pub(super) fn of_backend(
    backend: &BackendSettings,
    path: &dyn Fn(&str) -> String,
    found: &mut Findings,
) {
    let Some(pods) = &backend.kubernetes else { return };
    let at = |key: &str| path(&format!("kubernetes.{key}"));
    name(pods.namespace.as_deref(), &at("namespace"), found);
    name(pods.inference_pool.as_deref(), &at("inference_pool"), found);
    let both = pods.selector.is_some() && pods.inference_pool.is_some();
    let (selector, pool) = (at("selector"), at("inference_pool"));
    found.check_with(
        !both,
        &selector,
        &[&pool],
        "is set together with inference_pool",
        "set one of them",
    );
    for (key, text) in [("selector", &pods.selector), ("role_label", &pods.role_label)] {
        let is_set = text.as_deref().is_none_or(|text| !text.trim().is_empty());
        found.check(is_set, &at(key), "is empty", "omit it");
    }
    let few = (1..=PORTS_MAX).contains(&pods.ports.len());
    found.check(few, &at("ports"), &format!("has {} ports", pods.ports.len()), "one to eight");
    for (i, port) in pods.ports.iter().enumerate() {
        let path = at(&format!("ports[{i}]"));
        found.count(u64::from(*port), (1, u64::from(u16::MAX)), &path);
        let is_new = !pods.ports[..i].contains(port);
        found.check(is_new, &path, "is given twice", "each port once");
    }
}

fn name(name: Option<&str>, path: &str, found: &mut Findings) {
    found.check(
        name.is_none_or(is_name),
        path,
        "is not a Kubernetes object name",
        "a-z, 0-9, - and .",
    );
}

/// Returns whether this is a label key: a name, optionally after a domain and a slash.
fn is_label(key: &str) -> bool {
    let (domain, name) = key.split_once('/').map_or((None, key), |(a, b)| (Some(a), b));
    let ends = |name: &str| {
        let plain = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        plain(name.as_bytes().first()) && plain(name.as_bytes().last())
    };
    let part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    name.len() <= 63 && ends(name) && name.bytes().all(part) && domain.is_none_or(is_name)
}

/// Returns whether this is a valid object name, which becomes part of a path.
pub(super) fn is_name(name: &str) -> bool {
    let part =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    !name.is_empty() && name.len() <= 253 && name.bytes().all(part)
}

#[cfg(test)]
mod tests {
    use crate::Settings;

    fn problems(text: &str) -> Vec<String> {
        let problems = Settings::parse(text).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect()
    }

    fn of(more: &str) -> Vec<String> {
        problems(&format!("[[backends]]\nname = \"a\"\n[backends.kubernetes]\n{more}"))
    }

    #[test]
    fn pods_need_no_url() {
        assert_eq!(of("inference_pool = \"vllm-llama\""), Vec::<String>::new());
        assert_eq!(of("preset = \"production-stack\"\nports = [8000, 8001]"), Vec::<String>::new());
    }

    #[test]
    fn role_labels_need_a_key_and_a_selector() {
        let of = |more: &str| {
            problems(&format!(
                "[kubernetes.role_labels]\n{more}\n[[backends]]\nname = \"a\"\nurl = \"http://a:1\""
            ))
        };
        let selector = "selector = \"app=vllm\"";
        for key in ["tidegate.dev/role", "llm-d.ai/role", "role"] {
            assert_eq!(of(&format!("{selector}\nlabel = \"{key}\"")), Vec::<String>::new());
        }
        for key in ["a/b/c", "-role", "tidegate.dev/", "ro le", ""] {
            assert_eq!(of(&format!("{selector}\nlabel = \"{key}\"")).len(), 1, "{key}");
        }
        assert_eq!(of("label = \"role\"").len(), 1);
    }

    #[test]
    fn contradicting_keys_are_refused() {
        for (more, problem) in [
            ("selector = \"a=b\"\ninference_pool = \"p\"", "selector: is set together with"),
            ("selector = \" \"", "selector: is empty"),
            ("namespace = \"a/b\"", "namespace: is not a Kubernetes"),
            ("ports = []", "ports: has 0 ports"),
            ("ports = [1, 2, 3, 4, 5, 6, 7, 8, 9]", "ports: has 9 ports"),
            ("ports = [0]", "ports[0]: is 0"),
            ("ports = [80, 80]", "ports[1]: is given twice"),
        ] {
            let found = of(more);
            assert!(found.len() == 1 && found[0].contains(problem), "{more}: {found:?}");
        }
        let api = "[kubernetes]\nclient_cert = \"a\"\napi_server = \"x\"\n[[backends]]\nname = \"a\"\nurl = \"http://a:1\"";
        assert_eq!(problems(api).len(), 2, "{:?}", problems(api));
    }
}
