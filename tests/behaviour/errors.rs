//! Errors that the proxy answers itself, in OpenAI's form, without contacting an engine.

use http::Method;

use crate::client::{get, leave_later, post, send, until, within};
use crate::fake::{Act, Fake, chat_answer};
use crate::fleet::Emulated;
use crate::proxy::{Proxy, RefusingAddress, chat, chat_with, plain, vllm};

async fn serving() -> (Fake, Proxy) {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start("body_max_bytes = 20000\n", &[plain("a", &fake)]).await;
    (fake, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_requests_are_refused_before_placement() {
    let (fake, proxy) = serving().await;
    let chat_path = "/v1/chat/completions";
    let rows = [
        (chat_path, "{", 400, None),
        (chat_path, "[]", 400, None),
        (
            chat_path,
            r#"{"model":"nope","messages":[{"role":"user","content":"x"}]}"#,
            404,
            Some("model"),
        ),
        ("/v1/nothing", "{}", 404, None),
    ];
    for (path, body, status, param) in rows {
        let answer = proxy.post(path, body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        let error = &answer.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{}", answer.body);
        assert_eq!(error["param"].as_str(), param, "{body}");
        assert!(answer.headers.contains_key("x-request-id"));
    }
    assert!(fake.sent().is_empty(), "an engine received a request");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_announced_or_not() {
    let (fake, proxy) = serving().await;
    let answer =
        proxy.post("/v1/chat/completions", &chat_with(false, &"x".repeat(30_000), "")).await;
    assert_eq!(answer.status, 413);
    assert!(fake.sent().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_method_is_answered_405_with_allow() {
    let (_fake, proxy) = serving().await;
    let answer = send(proxy.data, get("/v1/chat/completions")).await;
    assert_eq!(answer.status, 405);
    assert_eq!(answer.headers["allow"], Method::POST.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_required_if_configured() {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let top = "[[auth.keys]]\nname = \"team\"\nkey = \"secret-key-1\"\n";
    let proxy = Proxy::start(top, &[plain("a", &fake)]).await;
    assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 401);
    let mut request = post("/v1/chat/completions", chat(false));
    request.headers_mut().insert("authorization", "Bearer secret-key-1".parse().unwrap());
    assert_eq!(send(proxy.data, request).await.status, 200);
    assert_eq!(fake.sent().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_usable_backend_the_answer_is_503() {
    let refusing = RefusingAddress::new();
    let more = "engine = \"plain\"\nmodels = [\"m\"]";
    let top = "[retry]\nattempts = 1\n";
    let proxy = Proxy::start(top, &[vllm("a", refusing.url(), more)]).await;
    // Detected by the prober or by this request, whichever is first.
    let first = proxy.post("/v1/chat/completions", &chat(false)).await;
    assert!(matches!(first.status.as_u16(), 502 | 503), "{}", first.body);
    let answer = proxy.post("/v1/chat/completions", &chat(false)).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.headers.contains_key("retry-after"));
    proxy.settles().await;
}

/// An engine that never answers, with capacity for one stream.
async fn full(top: &str) -> (Fake, Proxy) {
    let fake = Fake::start([], Act::Silent).await;
    let mut engine = plain("a", &fake);
    engine.more = "engine = \"plain\"\nstreams_max = 1";
    let proxy = Proxy::start(top, &[engine]).await;
    (fake, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_past_its_queue_deadline_gets_504() {
    let (fake, proxy) = full("[queue]\ndeadline_seconds = 0.3\n").await;
    let first = leave_later(proxy.data, post("/v1/chat/completions", chat(true)));
    until("the engine is taken", || fake.hanging() == 1).await;
    let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
    assert_eq!(answer.status, 504, "{}", answer.body);
    assert_eq!(fake.sent().len(), 1, "the request reached the engine once");
    first.abort();
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn load_shedding_refuses_a_request_that_became_late_in_the_queue() {
    let slo = "[slo]\nttft_seconds = 0.4\n[queue]\nlate = \"refuse\"\ndeadline_seconds = 60\n";
    let (fake, proxy) = full(slo).await;
    let first = leave_later(proxy.data, post("/v1/chat/completions", chat(true)));
    until("the engine is taken", || fake.hanging() == 1).await;
    let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
    assert_eq!(answer.status, 429, "{}", answer.body);
    assert_eq!(answer.json()["error"]["code"], "late");
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(fake.sent().len(), 1, "the engine was sent the refused request");
    first.abort();
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_429_with_retry_after() {
    let (fake, proxy) = full("[queue]\nrequests_max = 1\n").await;
    let first = leave_later(proxy.data, post("/v1/chat/completions", chat(true)));
    until("the engine is taken", || fake.hanging() == 1).await;
    let second = leave_later(proxy.data, post("/v1/chat/completions", chat(true)));
    until("one waits", || proxy.waiting() == 1).await;
    let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
    assert_eq!(answer.status, 429, "{}", answer.body);
    assert!(answer.headers.contains_key("retry-after"));
    first.abort();
    second.abort();
    within(async { drop((first.await, second.await)) }).await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_form_of_the_messages_api() {
    let events = |name: &str| {
        let data = "{\"type\":\"NAME\",\"delta\":{\"text\":\"a\"}}".replace("NAME", name);
        format!("event: {name}\ndata: {data}\n\n")
    };
    let whole = ["message_start", "content_block_delta", "message_stop"].map(events).to_vec();
    let broken = Act::Break(whole[..2].to_vec());
    let fake = Fake::start([Act::Chunks(whole.clone()), broken], Act::Drop).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let body = "{\"model\":\"m\",\"stream\":true,\"max_tokens\":9,\
                \"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
    let answer = proxy.post("/v1/messages", body).await;
    assert_eq!(answer.body, whole.concat(), "byte for byte");
    assert_eq!(fake.sent()[0].body, body);
    let answer = proxy.post("/v1/messages", body).await;
    let last = answer.body.trim_end().rsplit("\n\n").next().unwrap().to_owned();
    let error = last.strip_prefix("event: error\ndata: ").unwrap_or_else(|| panic!("{last}"));
    let error: serde_json::Value = serde_json::from_str(error).unwrap();
    assert_eq!(
        (error["type"].as_str(), error["error"]["type"].as_str()),
        (Some("error"), Some("api_error"))
    );
    for (body, status, kind) in [
        ("{", 400, "invalid_request_error"),
        ("{\"model\":\"nope\",\"max_tokens\":1,\"messages\":[]}", 404, "not_found_error"),
    ] {
        let answer = proxy.post("/v1/messages", body).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["type"]),
            (status, &kind.into())
        );
        assert_eq!(answer.json()["type"], "error");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_specific_paths_are_routed_to_an_engine_of_that_kind() {
    let (fake, proxy) = serving().await;
    for (path, body) in [
        ("/generate", "{\"text\":\"x\",\"sampling_params\":{\"max_new_tokens\":4}}"),
        ("/inference/v1/generate", "{\"token_ids\":[1,2],\"sampling_params\":{}}"),
        ("/v1/rerank", "{\"model\":\"m\",\"query\":\"a\",\"documents\":[\"b\"]}"),
    ] {
        let answer = proxy.post(path, body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert_eq!(fake.sent().last().unwrap().body, body, "byte for byte");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_port_answers_health_as_engines_do() {
    let mut fleet = Emulated::start(1).await;
    let engine = vllm("e", fleet.url(0), "engine = \"plain\"");
    let top = "[probe]\ninterval_seconds = 0.1\nfailures_to_eject = 1\n";
    let proxy = Proxy::start(top, &[engine]).await;
    let health = || send(proxy.data, get("/health"));
    assert_eq!((health().await.status.as_u16(), health().await.body), (200, String::new()));
    fleet.kill(0).await;
    for _ in 0..500 {
        if health().await.status == 503 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("healthy without an engine");
}
