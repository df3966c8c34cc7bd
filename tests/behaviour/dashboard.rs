//! Data of the dashboard: its files, the event stream, history, targets, simulations.

use http::StatusCode;
use serde_json::Value;
use std::sync::{Arc, Mutex};
use tidegate_proxy::what_if::{WhatIfOutcomes, WhatIfScenario};

use crate::client::{Answer, Open, get, open, post, send, until, within};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::process::serve;
use crate::proxy::{FREE, Proxy, chat, config, plain, two_ports, vllm};

/// Limit on the clients of `/v1/events`.
const WATCHERS: usize = 16;

async fn next_snapshot(stream: &mut Open) -> Value {
    let mut text = String::new();
    while !text.ends_with("\n\n") {
        let chunk = stream.chunk().await.expect("a further event").unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    let (event, data) = text.trim_end().split_once('\n').unwrap();
    assert_eq!(event, "event: snapshot");
    serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_loads_without_the_token_and_its_data_does_not() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let top = "[admin]\ntoken = \"0123456789abcdef-token\"\n";
    let proxy = Proxy::start(top, &[plain("a", &fake)]).await;
    for (path, kind) in
        [("/", "text/html"), ("/dashboard.css", "text/css"), ("/dashboard.js", "text/javascript")]
    {
        let Answer { status, headers, body } = send(proxy.admin, get(path)).await;
        assert_eq!(status, 200, "{path}");
        assert!(headers["content-type"].to_str().unwrap().starts_with(kind), "{path}");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert!(!body.contains("0123456789abcdef-token"));
    }
    for path in ["/v1/events", "/v1/history", "/v1/targets", "/v1/outlook"] {
        assert_eq!(send(proxy.admin, get(path)).await.status, 401, "{path}");
    }
    assert_eq!(send(proxy.admin, post("/v1/what-if", "{}")).await.status, 401);
    let mut foreign = get("/");
    foreign.headers_mut().insert("host", "attacker.example".parse().unwrap());
    assert_eq!(send(proxy.admin, foreign).await.status, 421);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_snapshots_and_end_with_the_proxy() {
    let fakes = [Fake::start([], Act::Silent).await, Fake::start([], Act::Silent).await];
    let engines = [vllm("a", fakes[0].url(), FREE), vllm("b", fakes[1].url(), FREE)];
    let proxy = Proxy::start("", &engines).await;
    let mut stream = open(proxy.admin, get("/v1/events")).await.unwrap();
    assert_eq!(stream.response.headers()["content-type"], "text/event-stream");
    let first = next_snapshot(&mut stream).await;
    assert_eq!(first["fleet"]["backends"][1]["name"], "b");
    proxy.set_role("a", "{\"role\":\"draining\",\"pin\":true}").await;
    loop {
        let next = next_snapshot(&mut stream).await;
        let Some(flip) = next["flips"].as_array().unwrap().last() else { continue };
        assert_eq!((&flip["backend"], &flip["to"]), (&"a".into(), &"draining".into()));
        assert_eq!(next["point"]["roles"].as_array().unwrap().len(), 4);
        break;
    }
    tokio::task::block_in_place(|| drop(proxy));
    while let Some(Ok(_)) = stream.chunk().await {}
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engines_wanted_are_in_the_outlook_and_on_the_metrics_page() {
    let fake = Fake::start([], Act::Silent).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let modelled = async {
        while proxy.admin("/v1/outlook").await[0]["engines_wanted"] != 1 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within(modelled).await;
    let page = send(proxy.admin, get("/metrics")).await.body;
    assert!(page.contains("tidegate_engines_wanted{group=\"0\"} 1\n"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_event_stream_are_bounded() {
    let fake = Fake::start([], Act::Silent).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let mut streams = Vec::new();
    for _ in 0..WATCHERS {
        let mut stream = open(proxy.admin, get("/v1/events")).await.unwrap();
        next_snapshot(&mut stream).await;
        streams.push(stream);
    }
    let refused = send(proxy.admin, get("/v1/events")).await;
    assert_eq!(
        (refused.status, &refused.headers["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"10".parse().unwrap())
    );
    drop(streams);
    let admitted = async {
        while open(proxy.admin, get("/v1/events")).await.unwrap().response.status() != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within(admitted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_and_history_count_ended_requests() {
    let fake = Fake::start([], Act::Chunks(chat_chunks(4))).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    assert_eq!(proxy.admin("/v1/targets").await["models"], serde_json::json!([]));
    for _ in 0..3 {
        assert_eq!(proxy.post("/v1/chat/completions", &chat(true)).await.status, 200);
    }
    let counted = async {
        loop {
            let targets = proxy.admin("/v1/targets").await;
            if targets["models"][0]["requests"] == 3 {
                return targets;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let targets = within(counted).await;
    let model = &targets["models"][0];
    assert_eq!(model["model"], "m");
    assert_eq!(model["attainment"], 1.0);
    assert!(model["ttft"]["p99"].as_f64().unwrap() < targets["ttft_seconds"].as_f64().unwrap());
    assert!(model["itl"]["p50"].is_number(), "{model}");
    assert_eq!((&targets["itl_seconds"], &model["itl_attainment"]), (&Value::Null, &1.0.into()));
    let seen = async {
        while !proxy
            .admin("/v1/history")
            .await
            .as_array()
            .unwrap()
            .iter()
            .any(|point| point["ended"] == 3 && point["attained"] == 3)
        {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    within(seen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_simulation_runs_at_a_time_on_the_recorded_arrivals() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (release, released) = std::sync::mpsc::channel::<()>();
    let simulator = {
        let (seen, released) = (Arc::clone(&seen), Mutex::new(released));
        move |scenario: &WhatIfScenario| {
            seen.lock().unwrap().push(scenario.clone());
            released.lock().unwrap().recv().unwrap();
            Ok(WhatIfOutcomes::default())
        }
    };
    let proxy = Proxy::start_simulating("", &[plain("a", &fake)], Some(Arc::new(simulator)));
    proxy.ready().await;
    let ask = async |body: &'static str| send(proxy.admin, post("/v1/what-if", body)).await;
    let few = ask("{}").await;
    assert_eq!(few.status, 400, "{}", few.body);
    for _ in 0..12 {
        proxy.post("/v1/chat/completions", &chat(false)).await;
    }
    for wrong in
        ["{\"engines\":[0]}", "{\"rate\":0}", "{\"ttft_seconds\":-1}", "{\"engine\":3}", "["]
    {
        assert_eq!(ask(wrong).await.status, 400, "{wrong}");
    }
    let admin = proxy.admin;
    let first = tokio::spawn(send(admin, post("/v1/what-if", "{\"engines\":[2],\"rate\":2}")));
    until("the first simulation runs", || seen.lock().unwrap().len() == 1).await;
    assert_eq!(ask("{}").await.status, 409);
    release.send(()).unwrap();
    let answer = first.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!((&answer.json()["arrivals"], &answer.json()["rate"]), (&12.into(), &2.0.into()));
    let scenario = seen.lock().unwrap()[0].clone();
    assert_eq!((scenario.engines, scenario.arrivals.len()), (vec![2], 12));
    assert!(scenario.arrivals.is_sorted_by(|a, b| a.at <= b.at));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_simulates_its_own_arrivals() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let (data, admin) = two_ports();
    let _serve = serve(&config(data, admin, "", &[plain("a", &fake)]));
    let up = || std::net::TcpStream::connect(admin).is_ok();
    until("it listens", up).await;
    let ready = async {
        while send(admin, get("/readyz")).await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within(ready).await;
    for _ in 0..12 {
        let answer = send(data, post("/v1/chat/completions", chat(false))).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let body = "{\"engines\":[1,2],\"policies\":[\"tidegate\",\"aggregated\"]}";
    let answer = send(admin, post("/v1/what-if", body)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let outcomes = answer.json()["outcomes"].as_array().unwrap().clone();
    assert_eq!(outcomes.len(), 4);
    assert_eq!(
        (&outcomes[3]["engines"], &outcomes[3]["policy"]),
        (&2.into(), &"aggregated".into())
    );
    let unknown = send(admin, post("/v1/what-if", "{\"policies\":[\"sideways\"]}")).await;
    assert!(unknown.status == 400 && unknown.body.contains("sideways"), "{}", unknown.body);
}
