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
}

fn name(name: Option<&str>, path: &str, found: &mut Found) {
    found.check(name.is_none_or(is_name), path, "is no name of Kubernetes", "a-z, 0-9, - and .");
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
    fn what_contradicts_itself_is_refused() {
        let api = "[kubernetes]\nclient_cert = \"a\"\napi_server = \"x\"\n[[backends]]\nname = \"a\"\nurl = \"http://a:1\"";
        assert_eq!(problems(api).len(), 2, "{:?}", problems(api));
    }
}
