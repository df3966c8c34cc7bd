//! Checks of the API server of Kubernetes: reachability, permissions, the Lease, pods by selector, role
//! labels. Nothing is written.

use std::time::Duration;
use tidegate_kubernetes::access::Access;
use tidegate_kubernetes::api::{self, KubeApiError};
use tidegate_kubernetes::convention;
use tidegate_kubernetes::election::Election;
use tidegate_kubernetes::labels::LabelRefusal;
use tidegate_kubernetes::lease::ElectionParams;
use tidegate_kubernetes::mirror::Mirror;
use tidegate_kubernetes::permissions::{self, NeededPermission};
use tidegate_kubernetes::source::{PodSource, PodSurvey, PodUse};
use tidegate_settings::{BackendSettings, PodSettings, RoleLabelSettings, Settings};
use tokio::time::timeout;

use super::{DoctorReport, Level};

const SUBJECT: &str = "kubernetes";
/// Time limit of each check.
const LIMIT: Duration = Duration::from_secs(10);
/// Most names in one line.
const NAMES: usize = 5;

/// Checks the parts of the API server that the settings use. Returns the backends of the current pods.
pub async fn check(settings: &Settings, report: &mut DoctorReport) -> Vec<BackendSettings> {
    let access = match Access::of_process(&settings.kubernetes) {
        Ok(access) => access,
        Err(error) => {
            let advice = "set kubernetes.api_server, or run doctor in a pod of the cluster";
            report.error(SUBJECT, "api server", error.to_string(), advice);
            return Vec::new();
        }
    };
    if !reach(&access, report).await {
        return Vec::new();
    }
    for needed in permissions::needed(settings, &access) {
        permission(&access, &needed, report).await;
    }
    if let Some(lease) = &settings.gateways.kubernetes {
        held(&access, &lease.name, report).await;
    }
    let mut found = Vec::new();
    for source in &settings.sources {
        let Some(rules) = &source.kubernetes else { continue };
        found.extend(pods(settings, &access, source, rules, report).await);
    }
    if let Some(labels) = &settings.kubernetes.role_labels {
        role_labels(&access, labels, report).await;
    }
    found
}

async fn within<T>(what: impl Future<Output = Result<T, KubeApiError>>) -> Result<T, KubeApiError> {
    timeout(LIMIT, what).await.unwrap_or(Err(KubeApiError::Late(LIMIT)))
}

/// Returns whether the API server answers.
async fn reach(access: &Access, report: &mut DoctorReport) -> bool {
    let at = format!("{}:{}, namespace {}", access.host, access.port, access.namespace);
    let asking = async { api::get(access, "/version").await?.read_list().await };
    let check = "api server";
    match within(asking).await {
        Ok(body) => {
            let version: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let version = version["gitVersion"].as_str().unwrap_or("of unknown version");
            report.ok(SUBJECT, check, format!("{at}: {version}"));
            true
        }
        // In some clusters the path needs a permission; a refusal also shows that the server is reachable.
        Err(KubeApiError::Status { code: 403 | 404, .. }) => {
            report.ok(SUBJECT, check, format!("{at}: reachable, its version is not readable"));
            true
        }
        Err(error) => {
            report.error(SUBJECT, check, format!("{at}: {error}"), advice(&error));
            false
        }
    }
}

/// Returns advice for a failed request.
fn advice(error: &KubeApiError) -> &'static str {
    match error {
        KubeApiError::Access(_) => "correct the files of [kubernetes]",
        KubeApiError::Status { code: 401, .. } => {
            "the API server refuses the credentials: correct kubernetes.token_file or client_cert"
        }
        KubeApiError::Status { code: 403, .. } => {
            "grant the account the permissions of deploy/kustomize or the Helm chart"
        }
        KubeApiError::Status { code: 404, .. } => "install the resource's CRD, or correct its name",
        KubeApiError::Status { .. } => "the API server fails or is busy: run doctor again",
        _ => "correct kubernetes.api_server and ca_file, and check the network",
    }
}

async fn permission(access: &Access, needed: &NeededPermission, report: &mut DoctorReport) {
    let (check, objects) = ("permissions", needed.objects());
    match within(permissions::denied(access, needed)).await {
        Ok(denied) if denied.is_empty() => {
            report.ok(SUBJECT, check, format!("{} {objects}", needed.verbs.join(", ")));
        }
        Ok(denied) => {
            let level = if needed.is_required { Level::Error } else { Level::Warning };
            let detail = format!("the account may not {} {objects}", denied.join(", "));
            let advice = format!("add to its Role: {}", needed.rule(&denied));
            report.add(level, SUBJECT, check, detail, Some(&advice));
        }
        Err(error) => {
            let detail = format!("{objects}: not reviewed: {error}");
            report.warn(SUBJECT, check, detail, advice(&error));
        }
    }
}

/// Reads the Lease of the gateways.
async fn held(access: &Access, name: &str, report: &mut DoctorReport) {
    let reader =
        Election::new(access.clone(), name, "doctor".to_owned(), ElectionParams::default());
    let (check, at) = ("lease", format!("{}/{name}", access.namespace));
    match within(reader.read()).await {
        Ok(None) => {
            report.ok(SUBJECT, check, format!("{at} does not exist: the first gateway creates it"));
        }
        Ok(Some(lease)) => match lease.spec.holder_identity.filter(|holder| !holder.is_empty()) {
            Some(holder) => report.ok(
                SUBJECT,
                check,
                format!("{at} is held by {holder}, epoch {}", lease.spec.lease_transitions),
            ),
            None => report.ok(SUBJECT, check, format!("{at} is free")),
        },
        Err(error) => report.error(SUBJECT, check, format!("{at}: {error}"), advice(&error)),
    }
}

/// Checks the pods of one entry of `[[backends]]`.
async fn pods(
    settings: &Settings,
    access: &Access,
    entry: &BackendSettings,
    rules: &PodSettings,
    report: &mut DoctorReport,
) -> Vec<BackendSettings> {
    let mut rules = rules.clone();
    let written = settings.kubernetes.role_labels.as_ref();
    rules.is_mirrored = written.is_some_and(|own| convention::reads_role_from(&rules, &own.label));
    let pool = rules.inference_pool.clone();
    let source = PodSource::new(access.clone(), entry.clone(), rules);
    match within(source.survey()).await {
        Ok(Some(survey)) => {
            selected(&entry.name, &survey, report);
            survey.backends
        }
        Ok(None) => {
            let detail = format!(
                "InferencePool {} is absent or selects no labels",
                pool.unwrap_or_default()
            );
            let advice = "correct inference_pool and namespace, or create the InferencePool";
            report.error(&entry.name, "pods", detail, advice);
            Vec::new()
        }
        Err(error) => {
            report.error(&entry.name, "pods", error.to_string(), advice(&error));
            Vec::new()
        }
    }
}

fn selected(subject: &str, survey: &PodSurvey, report: &mut DoctorReport) {
    let PodSurvey { namespace, selector, pods, backends } = survey;
    let of = |wanted: PodUse| -> Vec<&str> {
        pods.iter().filter(|(_, is)| *is == wanted).map(|(name, _)| name.as_str()).collect()
    };
    let at = format!("in {namespace} by {selector}");
    if pods.is_empty() {
        let advice = format!("compare the labels: kubectl get pods -n {namespace} --show-labels");
        return report.warn(subject, "pods", format!("no pod {at}"), &advice);
    }
    let detail = format!("{} pods {at}, backends: {}", pods.len(), backends.len());
    match backends.is_empty() {
        false => report.ok(subject, "pods", detail),
        true => report.warn(subject, "pods", detail, "start the engines, or correct the selector"),
    }
    let waiting = of(PodUse::NotReady);
    if !waiting.is_empty() {
        let detail = format!("not ready: {}", names(&waiting));
        report.warn(subject, "pods", detail, "they receive no requests: see kubectl describe pod");
    }
    let others = of(PodUse::NoEngine);
    if !others.is_empty() {
        let detail = format!("not engines by their labels: {}", names(&others));
        let advice =
            "if they are engines, correct preset or role_label (docs/kubernetes/install.md)";
        report.warn(subject, "labels", detail, advice);
    }
}

/// Checks whether roles can be written as labels.
async fn role_labels(access: &Access, labels: &RoleLabelSettings, report: &mut DoctorReport) {
    let check = "role labels";
    let RoleLabelSettings { label, selector, namespace } = labels;
    let mirror = Mirror::new(access.clone(), namespace.as_deref(), selector, label);
    let survey = match within(mirror.survey()).await {
        Ok(survey) => survey,
        Err(error) => {
            return report.error(SUBJECT, check, error.to_string(), advice(&error));
        }
    };
    if survey.is_empty() {
        let detail = format!("no pod by {selector}");
        return report.warn(SUBJECT, check, detail, "correct kubernetes.role_labels.selector");
    }
    let of = |wanted: Option<LabelRefusal>| -> Vec<&str> {
        survey.iter().filter(|(_, is)| *is == wanted).map(|(name, _)| name.as_str()).collect()
    };
    let writable = of(None);
    if !writable.is_empty() {
        report.ok(SUBJECT, check, format!("{label} can be written on {} pods", writable.len()));
    }
    let by_label = of(Some(LabelRefusal::Selector));
    if !by_label.is_empty() {
        let detail = format!("{label} is in the selector of the owner of {}", names(&by_label));
        let advice =
            "use another label, such as tidegate.dev/role: the owner would replace the pods";
        report.error(SUBJECT, check, detail, advice);
    }
    let unknown = of(Some(LabelRefusal::Owner));
    if !unknown.is_empty() {
        let detail = format!("{label} is not written on {}", names(&unknown));
        let advice =
            "their owner is neither ReplicaSet nor StatefulSet: roles stay in the plan only";
        report.warn(SUBJECT, check, detail, advice);
    }
}

/// Returns the first names and the number of the others.
fn names(all: &[&str]) -> String {
    let shown = all.iter().take(NAMES).copied().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
