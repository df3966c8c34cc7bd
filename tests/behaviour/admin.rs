//! Admin endpoints, as external scripts call them.

use crate::client::{get, leave_later, post, send, until};
use crate::fake::{Act, Fake, chat_answer};
use crate::proxy::{FREE, Proxy, chat, plain, vllm};

#[tokio::test(flavor = "multi_thread")]
async fn every_address_answers() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    for path in [
        "/livez",
        "/readyz",
        "/metrics",
        "/v1/fleet",
        "/v1/plan",
        "/v1/plan/history",
        "/v1/requests",
        "/v1/history",
        "/v1/outlook",
        "/v1/targets",
        "/",
        "/dashboard.css",
        "/dashboard.js",
    ] {
        let answer = send(proxy.admin, get(path)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
    assert_eq!(send(proxy.admin, get("/v1/nothing")).await.status, 404);
    assert_eq!(send(proxy.data, get("/metrics")).await.status, 404, "never on the data port");
    let fleet = proxy.admin("/v1/fleet").await;
    assert_eq!(fleet["backends"][0]["name"], "a");
    assert_eq!(fleet["backends"][0]["role"], "mixed");
}

#[tokio::test(flavor = "multi_thread")]
async fn live_requests_are_shown() {
    let fake = Fake::start([], Act::Silent).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let client = leave_later(proxy.data, post("/v1/chat/completions", chat(true)));
    until("the engine has it", || fake.hanging() == 1).await;
    let requests = proxy.admin("/v1/requests").await;
    assert_eq!(requests[0]["model"], "m");
    assert_eq!(requests[0]["stage"], "waiting");
    assert_eq!(requests[0]["backend"], "a");
    client.abort();
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manual_role_is_verified_journalled_or_refused() {
    let (a, b) = (Fake::start([], Act::Silent).await, Fake::start([], Act::Silent).await);
    let engines = [vllm("a", a.url(), FREE), vllm("b", b.url(), FREE), plain("c", &a)];
    let proxy = Proxy::start("[planner]\nenabled = false\n", &engines).await;
    let plan = proxy.admin("/v1/plan").await;
    let other = if plan["roles"]["a"] == "prefill" { "decode" } else { "prefill" };
    let answer = proxy.set_role("a", &format!("{{\"role\":\"{other}\",\"pin\":true}}")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["roles"]["a"], other);
    let after = proxy.admin("/v1/plan").await;
    assert_eq!(after["roles"]["a"], other);
    assert!(after["number"].as_u64() > plan["number"].as_u64());
    let history = proxy.admin("/v1/plan/history").await;
    assert_eq!((&history[0]["backend"], &history[0]["cause"]), (&"a".into(), &"operator".into()));
    for (name, body, status) in [
        ("c", "{\"role\":\"prefill\"}", 409),
        ("unknown", "{\"role\":\"prefill\"}", 404),
        ("a", "{\"role\":\"sideways\"}", 400),
        ("a", "{\"roll\":\"decode\"}", 400),
    ] {
        let answer = proxy.set_role(name, body).await;
        assert_eq!(answer.status, status, "{name} {body}: {}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manual_settings_survive_a_restart() {
    let fakes = [Fake::start([], Act::Silent).await, Fake::start([], Act::Silent).await];
    let engines = || [vllm("a", fakes[0].url(), FREE), vllm("b", fakes[1].url(), FREE)];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("roles.json");
    let start = async || {
        Proxy::start(&format!("[admin]\nstate_file = \"{}\"\n", file.display()), &engines()).await
    };
    let proxy = start().await;
    assert_eq!(proxy.set_role("a", r#"{"role":"decode","pin":true}"#).await.status, 200);
    assert_eq!(proxy.set_role("b", r#"{"role":"draining","pin":true}"#).await.status, 200);
    drop(proxy);
    let proxy = start().await;
    assert_eq!(proxy.backend("a").await["role"], "decode");
    assert_eq!(proxy.backend("b").await["role"], "draining");
    assert_eq!(proxy.set_role("b", r#"{"role":"prefill","pin":false}"#).await.status, 200);
    drop(proxy);
    let proxy = start().await;
    assert_eq!(proxy.backend("a").await["role"], "decode", "it is pinned");
    assert_ne!(proxy.backend("b").await["role"], "draining");
}
