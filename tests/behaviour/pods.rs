//! Pods as backends of a running proxy: emulated engines, a proxy, and the fake API server (the first test
//! also runs against that of `TIDEGATE_TEST_KUBECONFIG`).

use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

use crate::api_server::Fault;
use crate::client::{get, send, until};
use crate::cluster::Cluster;
use crate::discovery::FAST;
use crate::fleet::Emulated;
use crate::load::Load;
use crate::proxy::{FREE, Proxy, vllm};

/// Labels of the pod of an emulated engine: all have the address 127.0.0.1, each its own port.
fn labels(fleet: &Emulated, engine: usize, role: Option<&str>) -> Value {
    let port = fleet.address(engine).port().to_string();
    let mut labels = json!({"app": "vllm", "model.aibrix.ai/port": port});
    if let Some(role) = role {
        labels["llm-d.ai/role"] = json!(role);
    }
    labels
}

/// Settings with `[kubernetes]` of the cluster and one entry for its pods.
fn settings(cluster: &Cluster, more: &str) -> String {
    let api = &cluster.settings;
    let mut text = format!("{FAST}[kubernetes]\n");
    let files = [
        ("ca_file", &api.ca_file),
        ("client_cert", &api.client_cert),
        ("client_key", &api.client_key),
        ("token_file", &api.token_file),
    ];
    for (key, file) in files {
        if let Some(file) = file {
            text += &format!("{key} = \"{}\"\n", file.display());
        }
    }
    let (server, namespace) = (api.api_server.as_ref().unwrap(), api.namespace.as_ref().unwrap());
    text += &format!(
        "api_server = \"{server}\"\nnamespace = \"{namespace}\"\n\
         [[backends]]\nname = \"pods\"\n{FREE}\n\
         [backends.kubernetes]\nselector = \"app=vllm\"\n{more}\n"
    );
    text
}

async fn status(proxy: &Proxy, path: &str) -> u16 {
    send(proxy.admin, get(path)).await.status.as_u16()
}

async fn up(proxy: &Proxy, names: &[&str]) {
    proxy.has(names).await;
    for name in names {
        proxy.shows(name, |backend| backend["health"] == "up").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_join_serve_and_leave_under_load_without_a_failed_request() {
    let fleet = Emulated::start(3).await;
    let cluster = Cluster::start("backends").await;
    let proxy = Proxy::start_cold(&settings(&cluster, ""), &[]);
    proxy.has(&[]).await;
    assert_eq!(status(&proxy, "/readyz").await, 503, "no backend is known");
    let answer = proxy.post("/v1/chat/completions", &fleet.chat(false, 100, 5)).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    cluster.pod("a", "127.0.0.1", labels(&fleet, 0, None)).await;
    cluster.pod("b", "127.0.0.1", labels(&fleet, 1, None)).await;
    up(&proxy, &["a", "b"]).await;
    assert_eq!(status(&proxy, "/readyz").await, 200);
    let load = Load::start(&proxy, &fleet, 6);
    load.serves_more().await;
    cluster.pod("c", "127.0.0.1", labels(&fleet, 2, None)).await;
    up(&proxy, &["a", "b", "c"]).await;
    load.serves_more().await;
    cluster.delete("a").await;
    proxy.has(&["b", "c"]).await;
    cluster.status("b", "127.0.0.1", "False").await;
    proxy.has(&["c"]).await;
    load.serves_more().await;
    cluster.status("b", "127.0.0.1", "True").await;
    up(&proxy, &["b", "c"]).await;
    // Recreated under the same name.
    cluster.pod("a", "127.0.0.1", labels(&fleet, 0, None)).await;
    up(&proxy, &["a", "b", "c"]).await;
    load.serves_more().await;
    load.end().await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_exist_at_the_start_are_in_the_first_table() {
    let fleet = Emulated::start(2).await;
    let cluster = Cluster::fake().await;
    cluster.pod("a", "127.0.0.1", labels(&fleet, 0, Some("prefill"))).await;
    cluster.pod("b", "127.0.0.1", labels(&fleet, 1, Some("decode"))).await;
    let top = settings(&cluster, "").replace("[planner]", "[planner]\nenabled = false");
    let proxy = Proxy::start(&top, &[]).await;
    assert_eq!(proxy.names().await, ["a", "b"]);
    assert_eq!(proxy.backend("a").await["role"], "prefill");
    assert_eq!(proxy.backend("b").await["role"], "decode");
    let answer = proxy.post("/v1/chat/completions", &fleet.chat(true, 300, 5)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_label_sets_the_initial_role_and_later_changes_of_it_are_ignored() {
    let fleet = Emulated::start(2).await;
    let cluster = Cluster::fake().await;
    let top = settings(&cluster, "").replace("[planner]", "[planner]\nenabled = false");
    let proxy = Proxy::start_cold(&top, &[]);
    cluster.pod("a", "127.0.0.1", labels(&fleet, 0, Some("prefill"))).await;
    cluster.pod("b", "127.0.0.1", labels(&fleet, 1, Some("decode"))).await;
    up(&proxy, &["a", "b"]).await;
    assert_eq!(proxy.backend("a").await["role"], "prefill");
    assert_eq!(proxy.backend("b").await["role"], "decode");
    cluster.label("a", json!({"llm-d.ai/role": "decode"})).await;
    // The next change has been applied: the one before it, too.
    cluster.status("b", "127.0.0.1", "False").await;
    proxy.has(&["a"]).await;
    assert_eq!(proxy.backend("a").await["role"], "prefill");
    assert_eq!(proxy.slots(), 2, "the pod was not replaced");
    cluster.label("a", json!({"llm-d.ai/role": "encode"})).await;
    proxy.has(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminating_pod_receives_no_new_requests_and_finishes_its_streams() {
    let fleet = Emulated::start(2).await;
    let cluster = Cluster::fake().await;
    cluster.pod("a", "127.0.0.1", labels(&fleet, 0, None)).await;
    let proxy = Proxy::start(&settings(&cluster, ""), &[]).await;
    let load = Load::start(&proxy, &fleet, 4);
    load.serves_more().await;
    cluster.pod("b", "127.0.0.1", labels(&fleet, 1, None)).await;
    up(&proxy, &["a", "b"]).await;
    cluster.terminate("a").await;
    proxy.has(&["b"]).await;
    load.serves_more().await;
    cluster.delete("a").await;
    load.serves_more().await;
    load.end().await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_watches_and_an_absent_api_server_leave_the_last_known_pods() {
    let fleet = Emulated::start(3).await;
    let mut cluster = Cluster::fake().await;
    cluster.pod("a", "127.0.0.1", labels(&fleet, 0, None)).await;
    cluster.pod("b", "127.0.0.1", labels(&fleet, 1, None)).await;
    let proxy = Proxy::start(&settings(&cluster, ""), &[]).await;
    let load = Load::start(&proxy, &fleet, 4);
    load.serves_more().await;
    let fake = cluster.fake.as_ref().unwrap();
    fake.fail_watches(vec![Fault::Status(429, 1), Fault::ErrorEvent(410)]);
    fake.fail_lists(vec![Fault::Status(503, 0)]);
    fake.break_watches();
    load.serves_more().await;
    assert_eq!(proxy.names().await, ["a", "b"]);
    // The watch has recovered, and its back-off is reset.
    cluster.pod("c", "127.0.0.1", labels(&fleet, 2, None)).await;
    up(&proxy, &["a", "b", "c"]).await;
    cluster.fake.as_mut().unwrap().stop();
    sleep(Duration::from_secs(1)).await;
    load.serves_more().await;
    assert_eq!(proxy.names().await, ["a", "b", "c"]);
    cluster.fake.as_mut().unwrap().listen().await;
    cluster.delete("a").await;
    proxy.has(&["b", "c"]).await;
    load.serves_more().await;
    load.end().await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_backends_serve_while_the_api_server_is_absent_at_the_start() {
    let fleet = Emulated::start(2).await;
    let mut cluster = Cluster::fake().await;
    cluster.fake.as_mut().unwrap().stop();
    let engines = [vllm("static", fleet.url(0), FREE)];
    let proxy = Proxy::start(&settings(&cluster, ""), &engines).await;
    let answer = proxy.post("/v1/chat/completions", &fleet.chat(false, 100, 5)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    cluster.fake.as_mut().unwrap().listen().await;
    cluster.pod("a", "127.0.0.1", labels(&fleet, 1, None)).await;
    up(&proxy, &["a", "static"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ranks_of_one_pod_are_backends_that_join_and_leave_together() {
    let fleet = Emulated::start(2).await;
    let cluster = Cluster::fake().await;
    let ports = [0, 1].map(|engine| fleet.address(engine).port());
    let top = settings(&cluster, &format!("ports = [{}, {}]", ports[0], ports[1]));
    let proxy = Proxy::start_cold(&top, &[]);
    cluster.pod("a", "127.0.0.1", json!({"app": "vllm"})).await;
    let mut names = ports.map(|port| format!("a-{port}"));
    names.sort();
    up(&proxy, &names.each_ref().map(String::as_str)).await;
    cluster.delete("a").await;
    proxy.has(&[]).await;
    until("both have left", || proxy.is_settled()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_written_by_tidegate_do_not_replace_pods() {
    let fleet = Emulated::start(1).await;
    let cluster = Cluster::fake().await;
    cluster.pod("a", "127.0.0.1", labels(&fleet, 0, Some("draining"))).await;
    let written = "[kubernetes.role_labels]\nlabel = \"llm-d.ai/role\"\nselector = \"app=vllm\"\n";
    let top = settings(&cluster, "")
        .replace("[planner]", "[planner]\nenabled = false")
        .replace("[[backends]]", &format!("{written}[[backends]]"));
    let proxy = Proxy::start(&top, &[]).await;
    assert_eq!(proxy.names().await, ["a"], "a label that an earlier process left behind");
    for role in ["draining", "decode", "prefill"] {
        assert_eq!(proxy.set_role("a", &format!("{{\"role\":\"{role}\"}}")).await.status, 200);
        let label = || cluster.label_of("a", "llm-d.ai/role").as_deref() == Some(role);
        until("the label follows", label).await;
    }
    assert_eq!(proxy.names().await, ["a"]);
    assert_eq!(proxy.slots(), 1, "the pod was not replaced");
}
