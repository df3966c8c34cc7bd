//! Checks of `[kubernetes]`.

use super::Found;
use crate::schema::Settings;

pub(super) fn kubernetes(settings: &Settings, found: &mut Found) {
    let api = &settings.kubernetes;
    if let Some(url) = &api.api_server {
        let known = url.starts_with("https://") || url.starts_with("http://");
        found.check(
            known,
            "kubernetes.api_server",
            "has neither http nor https",
            "https://host:6443",
        );
    }
    let both = api.client_cert.is_some() == api.client_key.is_some();
    let (cert, key) = ("kubernetes.client_cert", "kubernetes.client_key");
    found.check_with(both, cert, &[key], "and client_key belong together", "both or neither");
    name(api.namespace.as_deref(), "kubernetes.namespace", found);
    let Some(labels) = &api.role_labels else { return };
    name(labels.namespace.as_deref(), "kubernetes.role_labels.namespace", found);
    let selector = !labels.selector.trim().is_empty();
    found.required(selector, "kubernetes.role_labels.selector", "the engines' pods, as kubectl -l");
    let key = "kubernetes.role_labels.label";
    if found.required(!labels.label.is_empty(), key, "tidegate.dev/role") {
        let problem = format!("{:?} is no label", labels.label);
        found.check(is_label(&labels.label), key, &problem, "tidegate.dev/role");
    }
}

fn name(name: Option<&str>, path: &str, found: &mut Found) {
    found.check(name.is_none_or(is_name), path, "is no name of Kubernetes", "a-z, 0-9, - and .");
}

/// Whether it is the key of a label: a name, after a domain and a slash if it has one.
fn is_label(key: &str) -> bool {
    let (domain, name) = key.split_once('/').map_or((None, key), |(a, b)| (Some(a), b));
    let ends = |name: &str| {
        let plain = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        plain(name.as_bytes().first()) && plain(name.as_bytes().last())
    };
    let part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    name.len() <= 63 && ends(name) && name.bytes().all(part) && domain.is_none_or(is_name)
}

/// Whether it is a name of Kubernetes, which is part of a path.
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
    fn what_contradicts_itself_is_refused() {
        let api = "[kubernetes]\nclient_cert = \"a\"\napi_server = \"x\"\n[[backends]]\nname = \"a\"\nurl = \"http://a:1\"";
        assert_eq!(problems(api).len(), 2, "{:?}", problems(api));
    }
}
