//! Roles as labels of pods, in a fake API server.

use serde_json::json;

use crate::api_server::Fault;
use crate::client::{get, send, until, within};
use crate::cluster::Cluster;
use crate::fake::{Act, Fake, chat_answer};
use crate::proxy::{DECODE, PREFILL, Proxy, vllm};

const KEY: &str = "tidegate.dev/role";
const WRITTEN_THRICE: &str = "tidegate_role_labels_total{result=\"written\"} 3";

/// A proxy that writes roles of pods with `app=vllm`; its two engines are pods named in their URLs.
async fn proxy(cluster: &Cluster, key: &str) -> (Proxy, [Fake; 2]) {
    let fakes = [0, 1].map(|_| Fake::start([], Act::Json(200, chat_answer("ok"))));
    let [p, d] = fakes;
    let (p, d) = (p.await, d.await);
    let api = cluster.settings.api_server.as_ref().unwrap();
    let top = format!(
        "[kubernetes]\napi_server = \"{api}\"\nnamespace = \"llm\"\n[kubernetes.role_labels]\nlabel = \"{key}\"\nselector = \"app=vllm\"\n"
    );
    let engines = [vllm("p", p.url(), PREFILL), vllm("d", d.url(), DECODE)];
    (Proxy::start(&top, &engines).await, [p, d])
}

/// Both engines have the loopback address, so that their pod is one with two roles.
async fn one_pod(cluster: &Cluster) {
    cluster.pod("vllm-0", "127.0.0.1", json!({"app": "vllm"})).await;
}

fn has(cluster: &Cluster, pod: &str, key: &str, value: &str) -> bool {
    cluster.label_of(pod, key).as_deref() == Some(value)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_written_and_follows_the_plan() {
    let cluster = Cluster::fake().await;
    cluster.workload("statefulsets", "vllm", json!({"app": "vllm"})).await;
    one_pod(&cluster).await;
    cluster.owned("vllm-0", "apps/v1", "StatefulSet", "vllm").await;
    cluster.pod("foreign", "10.9.9.9", json!({"app": "vllm"})).await;
    let (proxy, _engines) = proxy(&cluster, KEY).await;
    until("the role is written", || has(&cluster, "vllm-0", KEY, "mixed")).await;
    let to_decode = proxy.set_role("p", "{\"role\":\"decode\"}").await;
    assert_eq!(to_decode.status, 200, "{}", to_decode.body);
    until("the label follows", || has(&cluster, "vllm-0", KEY, "decode")).await;
    assert_eq!(cluster.label_of("foreign", KEY), None, "not a backend of this gateway");
    // Changed by hand: it is written again.
    cluster.label("vllm-0", json!({KEY: "prefill"})).await;
    until("the label is restored", || has(&cluster, "vllm-0", KEY, "decode")).await;
    // A write is counted once the API server's answer has arrived.
    within(async {
        while !send(proxy.admin, get("/metrics")).await.body.contains(WRITTEN_THRICE) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_in_the_owners_selector_is_refused_with_an_event() {
    let cluster = Cluster::fake().await;
    let key = "llm-d.ai/role";
    cluster.workload("replicasets", "decode", json!({"app": "vllm", key: "decode"})).await;
    one_pod(&cluster).await;
    cluster.owned("vllm-0", "apps/v1", "ReplicaSet", "decode").await;
    let (proxy, _engines) = proxy(&cluster, key).await;
    until("the refusal is reported", || !cluster.events().is_empty()).await;
    let events = cluster.events();
    assert!(events[0].contains("would replace the pod"), "{events:?}");
    assert_eq!(cluster.label_of("vllm-0", key), None);
    let page = send(proxy.admin, get("/metrics")).await.body;
    assert!(page.contains("tidegate_role_labels_total{result=\"refused\"} 1"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_of_an_unknown_kind_is_refused() {
    let cluster = Cluster::fake().await;
    one_pod(&cluster).await;
    cluster.owned("vllm-0", "example.com/v1", "Gang", "g").await;
    let (_proxy, _engines) = proxy(&cluster, KEY).await;
    until("the refusal is reported", || cluster.events().iter().any(|one| one.contains("unknown")))
        .await;
    assert_eq!(cluster.label_of("vllm-0", KEY), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_served_while_the_api_server_is_away_and_labels_follow_later() {
    let mut cluster = Cluster::fake().await;
    one_pod(&cluster).await;
    cluster.fake.as_ref().unwrap().fail_lists(vec![Fault::Status(429, 1)]);
    cluster.fake.as_mut().unwrap().stop();
    let (proxy, _engines) = proxy(&cluster, KEY).await;
    let answer = proxy.post("/v1/chat/completions", &crate::proxy::chat(false)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    cluster.fake.as_mut().unwrap().listen().await;
    until("the role is written", || has(&cluster, "vllm-0", KEY, "mixed")).await;
}
