//! Service classes: targets per request, batch work, attainment by class.

use http::Request;
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::Value;
use std::net::SocketAddr;
use tokio::task::JoinSet;

use crate::client::{get, leave_later, post, send, until};
use crate::fake::{Act, Fake, chat_chunks};
use crate::fleet::Emulated;
use crate::proxy::{Engine, FREE, Proxy, chat, chat_with, config, plain, vllm};

const CHAT: &str = "/v1/chat/completions";
const KEYS: &str = "[[auth.keys]]\nname = \"a\"\nkey = \"key-of-team-a\"\n\
                    [[auth.keys]]\nname = \"b\"\nkey = \"key-of-team-b\"\n";

/// Settings with these lines in `[slo]` and in a class for the key `b`.
fn classes(slo: &str, class: &str) -> String {
    format!("[slo]\n{slo}\n[[slo.classes]]\nname = \"own\"\nkeys = [\"b\"]\n{class}\n{KEYS}")
}

/// A chat of a key, with further headers.
fn of(key: &str, body: String, headers: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    let mut request = post(CHAT, body);
    let bearer = format!("Bearer key-of-team-{key}").parse().unwrap();
    request.headers_mut().insert("authorization", bearer);
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// Sends a chat and returns its record once it has ended.
async fn served(proxy: &Proxy, request: Request<Full<Bytes>>) -> Value {
    let answer = send(proxy.data, request).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    proxy.settles().await;
    let id = answer.headers["x-request-id"].to_str().unwrap();
    let record = proxy.admin(&format!("/v1/requests/{id}")).await;
    assert_eq!(record["stage"], "ended", "{record}");
    record
}

/// The order in which a busy engine receives two requests: of key `a`, and after it of key `b`.
async fn order(top: &str) -> [&'static str; 2] {
    let fake = Fake::start([Act::Silent], Act::Chunks(chat_chunks(2))).await;
    let proxy = Proxy::start(top, &[plain("engine", &fake)]).await;
    let body = |word: &str| chat_with(true, &format!("{word} ").repeat(2000), "");
    let first = leave_later(proxy.data, of("a", body("first"), &[]));
    until("the engine is busy", || fake.hanging() == 1).await;
    let mut clients = Vec::new();
    for (key, word) in [("a", "alpha"), ("b", "beta")] {
        clients.push(leave_later(proxy.data, of(key, body(word), &[])));
        until("it waits", || proxy.waiting() == clients.len()).await;
    }
    first.abort();
    until("both are sent", || fake.sent().len() == 3).await;
    for client in clients {
        client.await.unwrap();
    }
    proxy.settles().await;
    let sent = fake.sent();
    [&sent[1], &sent[2]].map(|sent| match String::from_utf8_lossy(&sent.body).contains("alpha") {
        true => "a",
        false => "b",
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_with_the_tighter_deadline_is_placed_first() {
    let slo = "ttft_seconds = 60";
    assert_eq!(order(&classes(slo, "ttft_seconds = 60")).await, ["a", "b"], "in order of arrival");
    assert_eq!(order(&classes(slo, "ttft_seconds = 15")).await, ["b", "a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_work_waits_behind_a_request_that_arrives_later() {
    let text =
        classes("ttft_seconds = 60", "batch = true").replace("keys = [\"b\"]", "keys = [\"a\"]");
    assert_eq!(order(&text).await, ["b", "a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_work_is_refused_at_its_own_queue_deadline() {
    let fake = Fake::start([], Act::Silent).await;
    let top = classes("", "batch = true\nqueue_deadline_seconds = 0.2");
    let proxy = Proxy::start(&top, &[plain("engine", &fake)]).await;
    // The prefill of a stream ends with its first token.
    let body = || chat_with(true, &"word ".repeat(2000), "");
    let held = leave_later(proxy.data, of("a", body(), &[]));
    until("the engine is busy", || fake.hanging() == 1).await;
    let answer = send(proxy.data, of("b", body(), &[])).await;
    assert_eq!(answer.status, 504, "{}", answer.body);
    held.abort();
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interactive_request_does_not_wait_behind_running_batch_work() {
    let fakes = Fake::start_sharing([], Act::Silent, 2).await;
    let top = classes("", "batch = true");
    let proxy = Proxy::start(&top, &[plain("e0", &fakes[0]), plain("e1", &fakes[1])]).await;
    let body = || chat_with(true, &"word ".repeat(2000), "");
    let sent = || fakes.iter().map(|fake| fake.sent().len()).sum::<usize>();
    // The others come when the first is placed: requests that come at once may take both engines.
    let batch = || leave_later(proxy.data, of("b", body(), &[]));
    let mut clients = vec![batch()];
    until("one runs", || sent() == 1).await;
    clients.extend([batch(), batch()]);
    until("the others leave an engine idle", || proxy.waiting() == 2).await;
    assert_eq!(sent(), 1);
    clients.push(leave_later(proxy.data, of("a", body(), &[])));
    until("the interactive request is sent", || sent() == 2).await;
    assert_eq!(proxy.waiting(), 2, "batch work still waits");
    for client in clients {
        client.abort();
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_work_causes_no_flip() {
    let fleet = Emulated::start(4).await;
    const NAMES: [&str; 4] = ["e0", "e1", "e2", "e3"];
    let engines: Vec<Engine> = (0..4).map(|i| vllm(NAMES[i], fleet.url(i), FREE)).collect();
    let proxy = Proxy::start(&classes("", "batch = true"), &engines).await;
    // The load of `flips.rs::the_planner_moves_engines_to_where_the_work_is`.
    let mut load = JoinSet::new();
    for client in 0..48 {
        let request = of("b", fleet.chat(true, 3500 + client, 2), &[]);
        let data = proxy.data;
        load.spawn(async move { send(data, request).await.status });
    }
    while let Some(done) = load.join_next().await {
        assert_eq!(done.unwrap(), 200);
    }
    proxy.settles().await;
    assert_eq!(proxy.admin("/v1/plan/history").await, serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_trusted_peer_states_targets_and_no_engine_sees_the_headers() {
    let headers = [
        ("x-llm-d-slo-ttft-ms", "250"),
        ("x-slo-tpot-ms", "12"),
        ("x-llm-d-inference-objective", "premium"),
    ];
    let class =
        "[[slo.classes]]\nname = \"premium\"\nobjectives = [\"premium\"]\nttft_seconds = 0.7\n";
    // Kept to the end, so that no later proxy gets the address of one that is shutting down.
    let mut proxies = Vec::new();
    for (peers, targets, name) in [
        ("[\"127.0.0.0/8\"]", [0.25, 0.012], "premium"),
        ("[\"10.0.0.0/8\"]", [1.0, 0.03], "default"),
    ] {
        let fake = Fake::start([], Act::Chunks(chat_chunks(2))).await;
        let top = format!("[slo]\ntrusted_peers = {peers}\n{class}{KEYS}");
        let proxy = Proxy::start(&top, &[plain("engine", &fake)]).await;
        let record = served(&proxy, of("a", chat(true), &headers)).await;
        let found =
            ["ttft_seconds", "tpot_seconds"].map(|key| record["targets"][key].as_f64().unwrap());
        assert_eq!((found, &record["class"]), (targets, &name.into()), "{record}");
        let received = &fake.sent()[0].headers;
        assert!(headers.iter().all(|(header, _)| !received.contains_key(*header)), "{received:?}");
        proxies.push(proxy);
    }
}

/// The value of a series with these labels on the page of metrics.
fn value(page: &str, series: &str, labels: &[&str]) -> Option<f64> {
    let is =
        |line: &&str| line.starts_with(series) && labels.iter().all(|label| line.contains(label));
    page.lines().find(is).map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn attainment_is_counted_by_class() {
    let fake = Fake::start([], Act::Chunks(chat_chunks(4))).await;
    // The first token comes 5 ms after the first chunk.
    let top = "[slo]\nttft_seconds = 60\ntpot_seconds = 60\n[[slo.classes]]\nname = \"strict\"\nkeys = [\"b\"]\nttft_seconds = 0.001\n\
               [[slo.classes]]\nname = \"night\"\nkeys = [\"c\"]\nbatch = true\n";
    let key = "[[auth.keys]]\nname = \"c\"\nkey = \"key-of-team-c\"\n";
    let proxy = Proxy::start(&format!("{top}{KEYS}{key}"), &[plain("engine", &fake)]).await;
    for key in ["a", "a", "b", "c"] {
        served(&proxy, of(key, chat(true), &[])).await;
    }
    let page = send(proxy.admin, get("/metrics")).await.body;
    let of = |series, labels: &[&str]| value(&page, series, labels);
    let attained = |class, target| of("tidegate_slo_attained_total{", &[class, target]);
    for (class, requests, met) in [("class=\"default\"", 2.0, 2.0), ("class=\"strict\"", 1.0, 0.0)]
    {
        assert_eq!(of("tidegate_slo_requests_total{", &[class]), Some(requests), "{page}");
        assert_eq!(attained(class, "target=\"ttft\""), Some(met), "{page}");
        assert_eq!(attained(class, "target=\"all\""), Some(met), "{page}");
        assert_eq!(attained(class, "target=\"tpot\""), Some(requests), "{page}");
    }
    assert_eq!(of("tidegate_slo_requests_total{", &["class=\"night\""]), None);
    let ttft = "gen_ai_server_time_to_first_token_seconds_count{";
    assert_eq!(of(ttft, &["class=\"night\""]), Some(1.0), "{page}");
    let targets = proxy.admin("/v1/targets").await;
    let row = |class: &str| {
        let rows = targets["models"].as_array().unwrap();
        rows.iter().find(|row| row["class"] == class).unwrap()
    };
    assert_eq!(
        (&row("default")["attainment"], &row("strict")["attainment"]),
        (&1.0.into(), &0.0.into())
    );
    assert_eq!(row("strict")["ttft_seconds"], 0.001);
    assert_eq!(
        (&row("night")["attainment"], &row("night")["ttft_seconds"]),
        (&Value::Null, &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn classes_change_with_a_reload() {
    let fake = Fake::start([], Act::Chunks(chat_chunks(2))).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.toml");
    let proxy = Proxy::from_file(&file, KEYS, &[plain("engine", &fake)]).await;
    let class =
        |record: &Value| (record["class"].clone(), record["targets"]["ttft_seconds"].clone());
    let request = || of("b", chat(true), &[]);
    assert_eq!(class(&served(&proxy, request()).await), ("default".into(), 1.0.into()));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let change = async |top: String| {
        let before = proxy.revision();
        std::fs::write(&file, config(any, any, &top, &[plain("engine", &fake)])).unwrap();
        proxy.reload();
        until("a new revision", || proxy.revision() > before).await;
    };
    change(classes("", "ttft_seconds = 0.4")).await;
    assert_eq!(class(&served(&proxy, request()).await), ("own".into(), 0.4.into()));
    change(classes("", "batch = true")).await;
    assert_eq!(class(&served(&proxy, request()).await), ("own".into(), Value::Null));
    change(KEYS.to_owned()).await;
    assert_eq!(class(&served(&proxy, request()).await), ("default".into(), 1.0.into()));
}
