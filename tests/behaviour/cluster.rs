//! Pods and InferencePools in an API server: the fake, or the real one of `TIDEGATE_TEST_KUBECONFIG`.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tidegate_kubernetes::access::Access;
use tidegate_kubernetes::api::{self, KubeApiError};
use tidegate_kubernetes::source::PodSource;
use tidegate_settings::{BackendSettings, Connector, EngineName, KubernetesSettings, PodSettings};
use tokio::sync::watch;

use crate::api_server::ApiServer;

const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";
/// Time limit of every wait.
const LIMIT: Duration = Duration::from_secs(30);

/// A separate namespace of an API server.
pub struct Cluster {
    /// The fake, for injecting faults; `None`: a real server.
    pub fake: Option<ApiServer>,
    /// `[kubernetes]`.
    pub settings: KubernetesSettings,
    access: Access,
    namespace: String,
    _files: TempDir,
}

impl Cluster {
    /// The real server if there is one, otherwise the fake.
    pub async fn start(name: &str) -> Cluster {
        match std::env::var_os("TIDEGATE_TEST_KUBECONFIG") {
            Some(path) => Cluster::real(Path::new(&path), name).await,
            None => Cluster::fake().await,
        }
    }

    /// The fake, for tests of faults.
    pub async fn fake() -> Cluster {
        let fake = ApiServer::start().await;
        let settings = KubernetesSettings {
            api_server: Some(format!("http://{}", fake.address)),
            namespace: Some("llm".into()),
            ..KubernetesSettings::default()
        };
        let access = Access::new(&settings, |_| None).unwrap();
        let files = TempDir::new().unwrap();
        Cluster { fake: Some(fake), settings, access, namespace: "llm".into(), _files: files }
    }

    async fn real(path: &Path, name: &str) -> Cluster {
        let files = TempDir::new().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let namespace = format!("tidegate-{name}-{:08x}", fastrand::u32(..));
        let settings = KubernetesSettings {
            api_server: value(&text, "server"),
            ca_file: file(&text, "certificate-authority", files.path()),
            client_cert: file(&text, "client-certificate", files.path()),
            client_key: file(&text, "client-key", files.path()),
            token_file: value(&text, "token").map(|token| {
                let path = files.path().join("token");
                std::fs::write(&path, token).unwrap();
                path
            }),
            namespace: Some(namespace.clone()),
            role_labels: None,
        };
        let access = Access::new(&settings, |_| None).unwrap();
        let cluster = Cluster { fake: None, settings, access, namespace, _files: files };
        let body = json!({"metadata": {"name": cluster.namespace}});
        cluster.send(Method::POST, "/api/v1/namespaces", JSON, &body).await.unwrap();
        let account = format!("/api/v1/namespaces/{}/serviceaccounts/default", cluster.namespace);
        while api::get(&cluster.access, &account).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        cluster
    }

    /// URL and credentials of the API server.
    pub fn access(&self) -> &Access {
        &self.access
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &'static str,
        body: &Value,
    ) -> Result<Value, KubeApiError> {
        let body = Some((kind, Bytes::from(body.to_string())));
        let answer = api::send(&self.access, method, path, body).await?;
        Ok(serde_json::from_slice(&answer.read_list().await?).unwrap())
    }

    fn pods(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", self.namespace)
    }

    /// Creates a pod that is ready at once.
    pub async fn pod(&self, name: &str, ip: &str, labels: Value) {
        let pod = json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "schedulerName": "none",
                "containers": [{"name": "engine", "image": "engine"}],
                "terminationGracePeriodSeconds": 0
            }
        });
        self.send(Method::POST, &self.pods(), JSON, &pod).await.unwrap();
        self.status(name, ip, "True").await;
    }

    /// Sets a pod's address and whether it is ready.
    pub async fn status(&self, name: &str, ip: &str, ready: &str) {
        let path = format!("{}/{name}/status", self.pods());
        let conditions = json!([{"type": "Ready", "status": ready}]);
        let ips = json!([{"ip": ip}]);
        let status =
            json!({"phase": "Running", "podIP": ip, "podIPs": ips, "conditions": conditions});
        self.send(Method::PATCH, &path, MERGE, &json!({"status": status})).await.unwrap();
    }

    /// Creates an object of a fake collection below `/apis/apps/v1`.
    pub async fn workload(&self, plural: &str, name: &str, labels: Value) {
        let path = format!("/apis/apps/v1/namespaces/{}/{plural}", self.namespace);
        let body = json!({
            "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": labels}}
        });
        self.send(Method::POST, &path, JSON, &body).await.unwrap();
    }

    /// Sets the controller of a fake's pod.
    pub async fn owned(&self, pod: &str, api_version: &str, kind: &str, owner: &str) {
        let path = format!("{}/{pod}", self.pods());
        let owner =
            json!({"apiVersion": api_version, "kind": kind, "name": owner, "controller": true});
        let patch = json!({"metadata": {"ownerReferences": [owner]}});
        self.send(Method::PATCH, &path, MERGE, &patch).await.unwrap();
    }

    /// Returns a label of a pod of the fake.
    pub fn label_of(&self, pod: &str, key: &str) -> Option<String> {
        let pods = self.fake.as_ref().unwrap().objects(&self.pods());
        let pod = pods.into_iter().find(|object| object["metadata"]["name"] == pod)?;
        pod["metadata"]["labels"][key].as_str().map(str::to_owned)
    }

    /// The messages of the fake's events.
    pub fn events(&self) -> Vec<String> {
        let path = format!("/api/v1/namespaces/{}/events", self.namespace);
        let events = self.fake.as_ref().unwrap().objects(&path);
        events.iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Sets labels; `null` removes one.
    pub async fn label(&self, name: &str, labels: Value) {
        let path = format!("{}/{name}", self.pods());
        let patch = json!({"metadata": {"labels": labels}});
        self.send(Method::PATCH, &path, MERGE, &patch).await.unwrap();
    }

    /// Deletes a pod at once.
    pub async fn delete(&self, name: &str) {
        let path = format!("{}/{name}", self.pods());
        let body = json!({"gracePeriodSeconds": 0});
        self.send(Method::DELETE, &path, JSON, &body).await.unwrap();
    }

    /// Marks a fake's pod as being deleted.
    pub async fn terminate(&self, name: &str) {
        let path = format!("{}/{name}", self.pods());
        let patch = json!({"metadata": {"deletionTimestamp": "2026-11-26T15:00:00Z"}});
        self.send(Method::PATCH, &path, MERGE, &patch).await.unwrap();
    }

    /// Creates an InferencePool; `false` where a real server lacks the resource.
    pub async fn pool(&self, name: &str, labels: Value, ports: &[u16]) -> bool {
        let (path, body) = (self.pools(), self.pool_body(name, labels, ports));
        match self.send(Method::POST, &path, JSON, &body).await {
            Ok(_) => true,
            Err(error) if self.fake.is_none() => {
                eprintln!("this API server takes no InferencePool: {error}");
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Changes an InferencePool.
    pub async fn change_pool(&self, name: &str, labels: Value, ports: &[u16]) {
        let path = format!("{}/{name}", self.pools());
        let body = self.pool_body(name, labels, ports);
        self.send(Method::PATCH, &path, MERGE, &json!({"spec": body["spec"]})).await.unwrap();
    }

    /// Deletes an InferencePool.
    pub async fn delete_pool(&self, name: &str) {
        let path = format!("{}/{name}", self.pools());
        self.send(Method::DELETE, &path, JSON, &json!({})).await.unwrap();
    }

    fn pools(&self) -> String {
        format!("/apis/inference.networking.k8s.io/v1/namespaces/{}/inferencepools", self.namespace)
    }

    fn pool_body(&self, name: &str, labels: Value, ports: &[u16]) -> Value {
        let ports: Vec<Value> = ports.iter().map(|port| json!({"number": port})).collect();
        json!({
            "apiVersion": "inference.networking.k8s.io/v1",
            "kind": "InferencePool",
            "metadata": {"name": name},
            "spec": {
                "selector": {"matchLabels": labels},
                "targetPorts": ports,
                "endpointPickerRef": {"name": "none", "port": {"number": 9002}}
            }
        })
    }

    /// Watches the pods that `rules` select.
    pub fn watch(&self, rules: PodSettings) -> Seen {
        self.watch_with(rules, self.access.clone())
    }

    /// Like [`Cluster::watch`], with other credentials.
    pub fn watch_with(&self, rules: PodSettings, access: Access) -> Seen {
        let template = BackendSettings {
            name: "pods".into(),
            engine: EngineName::Vllm,
            connector: Connector::Nixl,
            ..BackendSettings::default()
        };
        let source = PodSource::new(access, template, rules);
        let (sender, receiver) = watch::channel(None);
        tokio::spawn(source.run(sender));
        Seen(receiver)
    }
}

impl Drop for Cluster {
    /// Deletes the namespace on a real server.
    fn drop(&mut self) {
        if self.fake.is_some() {
            return;
        }
        let (access, path) =
            (self.access.clone(), format!("/api/v1/namespaces/{}", self.namespace));
        let deleting =
            async move { api::send(&access, Method::DELETE, &path, None).await.map(drop) };
        let runtime = std::thread::spawn(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(deleting)
        });
        let _ = runtime.join();
    }
}

/// Backends published by a source.
pub struct Seen(watch::Receiver<Option<Vec<BackendSettings>>>);

impl Seen {
    /// Waits until the backends are these: `NAME URL ROLE`.
    pub async fn until(&mut self, expected: &[&str]) {
        let arrived = tokio::time::timeout(LIMIT, async {
            self.0
                .wait_for(|known| known.as_ref().is_some_and(|known| lines(known) == expected))
                .await
        });
        if arrived.await.is_err() {
            panic!("expected {expected:?}, published {:?}", self.now());
        }
    }

    /// Returns the published backends; `None` before the first list.
    pub fn now(&self) -> Option<Vec<String>> {
        self.0.borrow().as_ref().map(|known| lines(known))
    }

    /// Returns their uids.
    pub fn uids(&self) -> Vec<String> {
        let known = self.0.borrow();
        known.iter().flatten().filter_map(|backend| backend.uid.clone()).collect()
    }
}

fn lines(known: &[BackendSettings]) -> Vec<String> {
    let line = |settings: &BackendSettings| {
        let role = settings.role.map_or("-", |role| role.as_str());
        format!("{} {} {role}", settings.name, settings.url)
    };
    known.iter().map(line).collect()
}

/// The value of a key in a kubeconfig with one cluster and one user.
fn value(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
    let value = line?.strip_prefix(':')?.trim().trim_matches('"');
    (!value.is_empty()).then(|| value.to_owned())
}

/// A file of the kubeconfig: named, or inline in base64.
fn file(text: &str, key: &str, folder: &Path) -> Option<PathBuf> {
    if let Some(data) = value(text, &format!("{key}-data")) {
        let path = folder.join(key);
        std::fs::write(&path, base64(&data)).unwrap();
        return Some(path);
    }
    value(text, key).map(PathBuf::from)
}

fn base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bits, mut held, mut out) = (0u32, 0, Vec::new());
    for digit in text.bytes().filter_map(digit) {
        bits = bits << 6 | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}

#[test]
fn a_kubeconfig_is_read() {
    let text = "clusters:\n- cluster:\n    certificate-authority-data: aGVsbG8=\n    server: https://h:6443\nusers:\n- name: a\n  user:\n    token: \"abc\"\n";
    assert_eq!(value(text, "server").as_deref(), Some("https://h:6443"));
    assert_eq!((value(text, "token").as_deref(), value(text, "client-key")), (Some("abc"), None));
    let folder = TempDir::new().unwrap();
    let path = file(text, "certificate-authority", folder.path()).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"hello");
}
