//! Permissions that the settings need from the API server, and whether the server grants them.

use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use serde_json::json;
use tidegate_settings::Settings;

use crate::access::Access;
use crate::api::{self, KubeApiError};

/// Path of a review of the caller's permissions; every authenticated account may create one.
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// Verbs of a list and its watch.
const FOLLOW: &[&str] = &["list", "watch"];

/// Verbs on one resource of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeededPermission {
    /// API group; empty: the core group.
    pub group: &'static str,
    /// Plural name of the resource.
    pub resource: &'static str,
    /// Name of the one object; `None`: all of the namespace.
    pub name: Option<String>,
    /// Namespace of the objects.
    pub namespace: String,
    /// Verbs, in the order in which they were needed.
    pub verbs: Vec<&'static str>,
    /// Whether a feature of the settings fails without it; `false`: an Event is lost.
    pub is_required: bool,
}

impl NeededPermission {
    fn new(
        group: &'static str,
        resource: &'static str,
        namespace: &str,
        verbs: &[&'static str],
    ) -> NeededPermission {
        NeededPermission {
            group,
            resource,
            name: None,
            namespace: namespace.to_owned(),
            verbs: verbs.to_vec(),
            is_required: true,
        }
    }

    /// The objects: `pods in llm`, `lease tidegate in llm`.
    pub fn objects(&self) -> String {
        match &self.name {
            Some(name) => format!("{}/{name} in {}", self.resource, self.namespace),
            None => format!("{} in {}", self.resource, self.namespace),
        }
    }

    /// The rule of a Role that grants these verbs, in YAML's flow style.
    pub fn rule(&self, verbs: &[&str]) -> String {
        let names = self.name.as_ref().map(|name| format!(", resourceNames: [{name}]"));
        format!(
            "{{apiGroups: [{:?}], resources: [{}]{}, verbs: [{}]}}",
            self.group,
            self.resource,
            names.unwrap_or_default(),
            verbs.join(", ")
        )
    }
}

/// Returns the permissions that the settings need.
pub fn needed(settings: &Settings, access: &Access) -> Vec<NeededPermission> {
    let mut all = Vec::new();
    let own =
        |namespace: &Option<String>| namespace.clone().unwrap_or_else(|| access.namespace.clone());
    let pool = settings.sidecar.as_ref().and_then(|sidecar| sidecar.inference_pool.as_ref());
    if let Some(pool) = pool {
        let (given, _) = pool.split_once('/').unzip();
        pods_of_pool(&mut all, given.unwrap_or(&access.namespace));
    }
    for pods in settings.sources.iter().filter_map(|source| source.kubernetes.as_ref()) {
        let namespace = own(&pods.namespace);
        match pods.inference_pool {
            Some(_) => pods_of_pool(&mut all, &namespace),
            None => add(&mut all, NeededPermission::new("", "pods", &namespace, FOLLOW)),
        }
    }
    if let Some(labels) = &settings.kubernetes.role_labels {
        let namespace = own(&labels.namespace);
        let pods = NeededPermission::new("", "pods", &namespace, &["list", "watch", "patch"]);
        add(&mut all, pods);
        for owner in ["replicasets", "statefulsets"] {
            add(&mut all, NeededPermission::new("apps", owner, &namespace, &["get"]));
        }
        let events = NeededPermission::new("", "events", &namespace, &["create"]);
        add(&mut all, NeededPermission { is_required: false, ..events });
    }
    if let Some(lease) = &settings.gateways.kubernetes {
        let of = |verbs: &[&'static str]| {
            NeededPermission::new("coordination.k8s.io", "leases", &access.namespace, verbs)
        };
        let one = NeededPermission { name: Some(lease.name.clone()), ..of(&["get", "update"]) };
        add(&mut all, one);
        // RBAC cannot limit `create` to a name.
        add(&mut all, of(&["create"]));
    }
    all
}

/// Adds the InferencePools of a namespace and their pods.
fn pods_of_pool(all: &mut Vec<NeededPermission>, namespace: &str) {
    let group = "inference.networking.k8s.io";
    add(all, NeededPermission::new(group, "inferencepools", namespace, FOLLOW));
    add(all, NeededPermission::new("", "pods", namespace, FOLLOW));
}

/// Adds verbs to the entry of the same objects, or a new entry.
fn add(all: &mut Vec<NeededPermission>, new: NeededPermission) {
    let same = |known: &&mut NeededPermission| {
        (known.group, known.resource, &known.namespace, &known.name)
            == (new.group, new.resource, &new.namespace, &new.name)
    };
    match all.iter_mut().find(same) {
        Some(known) => {
            let missing = new.verbs.iter().filter(|verb| !known.verbs.contains(verb)).copied();
            let missing: Vec<_> = missing.collect();
            known.verbs.extend(missing);
        }
        None => all.push(new),
    }
}

/// `SelfSubjectAccessReview`, as far as it is read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct AccessReview {
    status: AccessReviewStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AccessReviewStatus {
    allowed: bool,
}

/// Returns the verbs that the API server does not grant to this account.
///
/// # Errors
/// [`KubeApiError`] when a review cannot be created.
pub async fn denied(
    access: &Access,
    needed: &NeededPermission,
) -> Result<Vec<&'static str>, KubeApiError> {
    let mut denied = Vec::new();
    for verb in &needed.verbs {
        let mut attributes = json!({
            "namespace": needed.namespace, "verb": verb,
            "group": needed.group, "resource": needed.resource,
        });
        if let Some(name) = &needed.name {
            attributes["name"] = name.as_str().into();
        }
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        });
        let body = Some(("application/json", Bytes::from(review.to_string())));
        let answer = api::send(access, Method::POST, REVIEWS, body).await?.read_list().await?;
        let review: AccessReview = serde_json::from_slice(&answer)?;
        if !review.status.allowed {
            denied.push(*verb);
        }
    }
    Ok(denied)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<(String, Vec<&'static str>)> {
        let settings = Settings::parse(text).unwrap();
        let access = Access::new(&settings.kubernetes, |_| None).unwrap();
        needed(&settings, &access).iter().map(|one| (one.objects(), one.verbs.clone())).collect()
    }

    const API: &str = "[kubernetes]\napi_server = \"http://a:1\"\nnamespace = \"llm\"\n";

    #[test]
    fn each_feature_needs_its_verbs_and_no_others() {
        let engine = "[[backends]]\nname = \"a\"\nurl = \"http://a:1\"\n";
        assert_eq!(of(&format!("{API}{engine}")), []);
        let pods = format!("{API}[[backends]]\nname = \"p\"\n[backends.kubernetes]\n");
        let pool = format!("{pods}namespace = \"other\"\ninference_pool = \"q\"\n");
        let expected = ["inferencepools in other", "pods in other"];
        let expected = expected.map(|objects| (objects.to_owned(), vec!["list", "watch"]));
        assert_eq!(of(&pool), expected);
        assert_eq!(of(&pods), [("pods in llm".to_owned(), vec!["list", "watch"])]);
        let lease = format!("{API}[gateways.kubernetes]\nlease = \"tide\"\n{engine}");
        let expected = [
            ("leases/tide in llm".to_owned(), vec!["get", "update"]),
            ("leases in llm".to_owned(), vec!["create"]),
        ];
        assert_eq!(of(&lease), expected);
    }

    #[test]
    fn verbs_on_the_same_pods_are_one_entry() {
        let labels =
            "[kubernetes.role_labels]\nlabel = \"tidegate.dev/role\"\nselector = \"a=b\"\n";
        let pods = "[[backends]]\nname = \"p\"\n[backends.kubernetes]\n";
        let all = of(&format!("{API}{labels}{pods}"));
        assert_eq!(all[0], ("pods in llm".to_owned(), vec!["list", "watch", "patch"]));
        assert_eq!(all.len(), 4, "{all:?}");
    }

    #[test]
    fn a_rule_is_one_of_a_role() {
        let mut lease = NeededPermission::new("coordination.k8s.io", "leases", "llm", &["get"]);
        lease.name = Some("tide".to_owned());
        let rule = "{apiGroups: [\"coordination.k8s.io\"], resources: [leases], resourceNames: [tide], verbs: [update]}";
        assert_eq!(lease.rule(&["update"]), rule);
    }
}
