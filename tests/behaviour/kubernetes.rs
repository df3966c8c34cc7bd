//! Pods as backends: the backends published while pods, labels, pools, watches and the API server
//! change. Tests of faults use the fake; the others also run against `TIDEGATE_TEST_KUBECONFIG`.

use serde_json::json;
use std::time::Duration;
use tidegate_kubernetes::access::Access;
use tidegate_settings::{KubernetesSettings, PodSettings, Preset};
use tokio::time::{Instant, sleep};

use crate::api_server::Fault;
use crate::certificates::Authority;
use crate::cluster::{Cluster, Seen};
use crate::tls::behind_tls;

fn rules() -> PodSettings {
    PodSettings { selector: Some("app=vllm".into()), ..PodSettings::default() }
}

/// Starts the fake with one pod, which has been published.
async fn with_one_pod() -> (Cluster, Seen) {
    let cluster = Cluster::fake().await;
    cluster.pod("a", "10.0.0.1", json!({"app": "vllm"})).await;
    let mut seen = cluster.watch(rules());
    seen.until(&["a http://10.0.0.1:8000 -"]).await;
    (cluster, seen)
}

/// Waits until the fake has served such a request since the last call.
async fn requested(cluster: &Cluster, prefix: &str) {
    let fake = cluster.fake.as_ref().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while !fake.take_requests().iter().any(|request| request.starts_with(prefix)) {
        assert!(Instant::now() < end, "no request {prefix}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn pods_are_added_changed_and_removed() {
    let cluster = Cluster::start("pods").await;
    cluster.pod("other", "10.0.0.9", json!({"app": "web"})).await;
    let mut seen = cluster.watch(rules());
    seen.until(&[]).await;
    cluster.pod("a", "10.0.0.1", json!({"app": "vllm", "llm-d.ai/role": "prefill"})).await;
    seen.until(&["a http://10.0.0.1:8000 prefill"]).await;
    cluster.pod("b", "10.0.0.2", json!({"app": "vllm"})).await;
    seen.until(&["a http://10.0.0.1:8000 prefill", "b http://10.0.0.2:8000 -"]).await;
    cluster.label("a", json!({"llm-d.ai/role": "decode"})).await;
    seen.until(&["a http://10.0.0.1:8000 decode", "b http://10.0.0.2:8000 -"]).await;
    cluster.status("b", "10.0.0.2", "False").await;
    seen.until(&["a http://10.0.0.1:8000 decode"]).await;
    cluster.status("b", "10.0.0.2", "True").await;
    seen.until(&["a http://10.0.0.1:8000 decode", "b http://10.0.0.2:8000 -"]).await;
    cluster.delete("b").await;
    seen.until(&["a http://10.0.0.1:8000 decode"]).await;
}

#[tokio::test]
async fn a_pod_that_stops_matching_the_selector_is_removed_until_it_matches_again() {
    let cluster = Cluster::start("selector").await;
    cluster.pod("a", "10.0.0.1", json!({"app": "vllm"})).await;
    let mut seen = cluster.watch(rules());
    seen.until(&["a http://10.0.0.1:8000 -"]).await;
    cluster.label("a", json!({"app": "maintenance"})).await;
    seen.until(&[]).await;
    cluster.label("a", json!({"app": "vllm", "sleeping": "true"})).await;
    cluster.pod("b", "10.0.0.2", json!({"app": "vllm"})).await;
    seen.until(&["b http://10.0.0.2:8000 -"]).await;
    cluster.label("a", json!({"sleeping": null})).await;
    seen.until(&["a http://10.0.0.1:8000 -", "b http://10.0.0.2:8000 -"]).await;
}

#[tokio::test]
async fn a_recreated_pod_has_another_uid() {
    let cluster = Cluster::start("uid").await;
    cluster.pod("a", "10.0.0.1", json!({"app": "vllm"})).await;
    let mut seen = cluster.watch(rules());
    seen.until(&["a http://10.0.0.1:8000 -"]).await;
    let before = seen.uids();
    cluster.delete("a").await;
    seen.until(&[]).await;
    cluster.pod("a", "10.0.0.1", json!({"app": "vllm"})).await;
    seen.until(&["a http://10.0.0.1:8000 -"]).await;
    assert_ne!(seen.uids(), before);
}

#[tokio::test]
async fn leaders_of_a_leader_worker_set_are_its_only_backends() {
    let cluster = Cluster::start("lws").await;
    for (name, index) in [("g-0", "0"), ("g-0-1", "1")] {
        let labels = json!({"leaderworkerset.sigs.k8s.io/worker-index": index});
        cluster.pod(name, "10.0.0.1", labels).await;
    }
    let mut seen = cluster.watch(PodSettings { preset: Preset::Lws, ..PodSettings::default() });
    seen.until(&["g-0 http://10.0.0.1:8000 -"]).await;
}

#[tokio::test]
async fn an_inference_pool_selects_pods_and_ports() {
    let cluster = Cluster::start("pool").await;
    cluster.pod("a", "10.0.0.1", json!({"app": "vllm"})).await;
    cluster.pod("b", "10.0.0.2", json!({"app": "sglang"})).await;
    if !cluster.pool("llama", json!({"app": "vllm"}), &[8000]).await {
        return;
    }
    let pool = PodSettings { inference_pool: Some("llama".into()), ..PodSettings::default() };
    let mut seen = cluster.watch(pool);
    seen.until(&["a http://10.0.0.1:8000 -"]).await;
    cluster.change_pool("llama", json!({"app": "vllm"}), &[8000, 8001]).await;
    seen.until(&["a-8000 http://10.0.0.1:8000 -", "a-8001 http://10.0.0.1:8001 -"]).await;
    cluster.change_pool("llama", json!({"app": "sglang"}), &[8200]).await;
    seen.until(&["b http://10.0.0.2:8200 -"]).await;
}

#[tokio::test]
async fn a_broken_watch_resumes_at_its_version() {
    let (cluster, mut seen) = with_one_pod().await;
    let fake = cluster.fake.as_ref().unwrap();
    requested(&cluster, "watch").await;
    fake.break_watches();
    cluster.pod("b", "10.0.0.2", json!({"app": "vllm"})).await;
    seen.until(&["a http://10.0.0.1:8000 -", "b http://10.0.0.2:8000 -"]).await;
    fake.fail_watches(vec![Fault::EndsAfter(1), Fault::EndsAfter(1)]);
    fake.break_watches();
    cluster.delete("a").await;
    cluster.pod("c", "10.0.0.3", json!({"app": "vllm"})).await;
    seen.until(&["b http://10.0.0.2:8000 -", "c http://10.0.0.3:8000 -"]).await;
    let requests = fake.take_requests();
    assert!(requests.iter().all(|request| request.starts_with("watch")), "{requests:?}");
}

#[tokio::test]
async fn an_expired_version_causes_a_new_list() {
    let (cluster, mut seen) = with_one_pod().await;
    let fake = cluster.fake.as_ref().unwrap();
    requested(&cluster, "watch").await;
    cluster.pod("b", "10.0.0.2", json!({"app": "vllm"})).await;
    seen.until(&["a http://10.0.0.1:8000 -", "b http://10.0.0.2:8000 -"]).await;
    // Changes that no watch has delivered; their history is dropped.
    fake.fail_watches(vec![Fault::Status(500, 0)]);
    fake.break_watches();
    cluster.delete("a").await;
    cluster.pod("c", "10.0.0.3", json!({"app": "vllm"})).await;
    fake.compact();
    seen.until(&["b http://10.0.0.2:8000 -", "c http://10.0.0.3:8000 -"]).await;
    let requests = fake.take_requests();
    assert!(requests.contains(&"list".to_owned()), "{requests:?}");
}

#[tokio::test]
async fn a_410_to_a_watch_causes_a_new_list_and_keeps_the_backends() {
    for fault in [Fault::Status(410, 0), Fault::ErrorEvent(410)] {
        let (cluster, mut seen) = with_one_pod().await;
        let fake = cluster.fake.as_ref().unwrap();
        requested(&cluster, "watch").await;
        fake.fail_lists(vec![Fault::Status(503, 0)]);
        fake.fail_watches(vec![fault]);
        fake.break_watches();
        requested(&cluster, "list").await;
        assert_eq!(seen.now().unwrap(), ["a http://10.0.0.1:8000 -"], "the list has failed");
        cluster.pod("b", "10.0.0.2", json!({"app": "vllm"})).await;
        seen.until(&["a http://10.0.0.1:8000 -", "b http://10.0.0.2:8000 -"]).await;
    }
}

#[tokio::test]
async fn bookmarks_move_the_version_so_that_no_list_is_needed() {
    let (cluster, mut seen) = with_one_pod().await;
    let fake = cluster.fake.as_ref().unwrap();
    requested(&cluster, "watch").await;
    fake.bookmark();
    cluster.pod("b", "10.0.0.2", json!({"app": "vllm"})).await;
    seen.until(&["a http://10.0.0.1:8000 -", "b http://10.0.0.2:8000 -"]).await;
    fake.bookmark();
    // The bookmark is the newest version; the history before it is dropped.
    cluster.label("b", json!({"app": "vllm", "x": "1"})).await;
    cluster.pod("c", "10.0.0.3", json!({"app": "vllm"})).await;
    seen.until(&[
        "a http://10.0.0.1:8000 -",
        "b http://10.0.0.2:8000 -",
        "c http://10.0.0.3:8000 -",
    ])
    .await;
    let requests = fake.take_requests();
    assert_eq!(requests, Vec::<String>::new(), "one watch delivered all of it");
    fake.break_watches();
    requested(&cluster, "watch 21").await;
}

#[tokio::test]
async fn statuses_429_and_409_are_retried_and_keep_the_backends() {
    let (cluster, mut seen) = with_one_pod().await;
    let fake = cluster.fake.as_ref().unwrap();
    requested(&cluster, "watch").await;
    fake.fail_watches(vec![Fault::Status(429, 1), Fault::Status(409, 0), Fault::ErrorEvent(500)]);
    fake.break_watches();
    cluster.pod("b", "10.0.0.2", json!({"app": "vllm"})).await;
    assert_eq!(seen.now().unwrap(), ["a http://10.0.0.1:8000 -"]);
    seen.until(&["a http://10.0.0.1:8000 -", "b http://10.0.0.2:8000 -"]).await;
    let requests = fake.take_requests();
    assert!(requests.len() >= 4 && requests.len() < 10, "{requests:?}");
}

#[tokio::test]
async fn an_absent_api_server_changes_nothing() {
    let (mut cluster, mut seen) = with_one_pod().await;
    requested(&cluster, "watch").await;
    cluster.fake.as_mut().unwrap().stop();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(seen.now().unwrap(), ["a http://10.0.0.1:8000 -"]);
    cluster.fake.as_mut().unwrap().listen().await;
    cluster.pod("b", "10.0.0.2", json!({"app": "vllm"})).await;
    seen.until(&["a http://10.0.0.1:8000 -", "b http://10.0.0.2:8000 -"]).await;
}

#[tokio::test]
async fn nothing_is_published_before_the_first_list() {
    let cluster = Cluster::fake().await;
    let fake = cluster.fake.as_ref().unwrap();
    fake.fail_lists(vec![Fault::Status(403, 0), Fault::Status(429, 1)]);
    cluster.pod("a", "10.0.0.1", json!({"app": "vllm"})).await;
    let mut seen = cluster.watch(rules());
    requested(&cluster, "list").await;
    assert_eq!(seen.now(), None, "an empty set would drain every backend");
    seen.until(&["a http://10.0.0.1:8000 -"]).await;
}

#[tokio::test]
async fn a_deleted_pool_keeps_its_backends() {
    let cluster = Cluster::fake().await;
    cluster.pod("a", "10.0.0.1", json!({"app": "vllm"})).await;
    let pool = PodSettings { inference_pool: Some("later".into()), ..PodSettings::default() };
    let mut seen = cluster.watch(pool);
    requested(&cluster, "watch").await;
    assert_eq!(seen.now(), None, "the pool does not exist yet");
    cluster.pool("later", json!({"app": "vllm"}), &[8000]).await;
    seen.until(&["a http://10.0.0.1:8000 -"]).await;
    cluster.change_pool("later", json!({"app": null}), &[8000]).await;
    requested(&cluster, "watch").await;
    cluster.delete_pool("later").await;
    cluster.pod("b", "10.0.0.2", json!({"app": "vllm"})).await;
    seen.until(&["a http://10.0.0.1:8000 -", "b http://10.0.0.2:8000 -"]).await;
}

#[tokio::test]
async fn a_list_is_read_in_pages() {
    let cluster = Cluster::fake().await;
    cluster.fake.as_ref().unwrap().page(2);
    for n in 1..=5 {
        cluster.pod(&format!("p{n}"), &format!("10.0.0.{n}"), json!({"app": "vllm"})).await;
    }
    let mut seen = cluster.watch(rules());
    let expected: Vec<String> = (1..=5).map(|n| format!("p{n} http://10.0.0.{n}:8000 -")).collect();
    seen.until(&expected.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_replaced_token_is_read_again() {
    let cluster = Cluster::fake().await;
    let folder = tempfile::TempDir::new().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "first\n").unwrap();
    let settings =
        KubernetesSettings { token_file: Some(token.clone()), ..cluster.settings.clone() };
    let mut seen = cluster.watch_with(rules(), Access::new(&settings, |_| None).unwrap());
    seen.until(&[]).await;
    requested(&cluster, "watch").await;
    std::fs::write(&token, "second\n").unwrap();
    let fake = cluster.fake.as_ref().unwrap();
    fake.break_watches();
    requested(&cluster, "watch").await;
    assert_eq!(fake.authorizations(), ["Bearer first", "Bearer second"]);
}

#[tokio::test]
async fn the_api_server_is_verified_and_receives_the_client_certificate_and_token() {
    let cluster = Cluster::fake().await;
    let fake = cluster.fake.as_ref().unwrap();
    cluster.pod("a", "10.0.0.1", json!({"app": "vllm"})).await;
    let folder = tempfile::TempDir::new().unwrap();
    let at = folder.path();
    let (authority, other) = (Authority::new(at, "ca"), Authority::new(at, "other"));
    let (leaf, ours) = (authority.leaf(at, "api", "api"), authority.leaf(at, "ours", "tidegate"));
    std::fs::write(at.join("token"), "secret").unwrap();
    let address = behind_tls(fake.address, authority.server(&leaf, true)).await;
    let access = |ca: &Authority| {
        let settings = KubernetesSettings {
            api_server: Some(format!("https://{address}")),
            ca_file: Some(ca.file.clone()),
            token_file: Some(at.join("token")),
            client_cert: Some(ours.cert.clone()),
            client_key: Some(ours.key.clone()),
            namespace: Some("llm".into()),
            role_labels: None,
        };
        Access::new(&settings, |_| None).unwrap()
    };
    let stranger = cluster.watch_with(rules(), access(&other));
    let mut seen = cluster.watch_with(rules(), access(&authority));
    seen.until(&["a http://10.0.0.1:8000 -"]).await;
    assert_eq!(fake.authorizations(), ["Bearer secret"]);
    assert_eq!(stranger.now(), None, "the certificate is from another authority");
}
