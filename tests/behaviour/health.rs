//! Attribution of failures: an engine's health depends on its own failures, not on those of a
//! request or a client, nor on silent streams. Field cases 01, 03, 05 and 08.

use std::time::Duration;

use crate::client::{h2_without_window, open, post, until};
use crate::fake::{Act, Fake, chat_answer, chat_chunks, prefill_answer};
use crate::field::{Play, RawClient, RawEngine, Received, ask, case};
use crate::proxy::{Proxy, SPLIT, chat, chat_with, plain, vllm};

/// Number of bad requests that a client may send in a row without affecting others.
pub const MANY: usize = 12;

fn ok(body: &str) -> Vec<Play> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
    vec![Play::bytes(format!("{head}{}\r\n\r\n{body}", body.len()))]
}

fn is_bad(request: &Received) -> bool {
    request.body.ends_with(b"[1]}")
}

/// An engine that gives this answer to bad requests and serves all others.
async fn validating_engine(answer: bytes::Bytes) -> RawEngine {
    RawEngine::scripted(move |_, request| match is_bad(request) {
        true => vec![Play::Bytes(answer.clone())],
        false => ok(&chat_answer("hello")),
    })
    .await
}

/// Returns the health of a backend as the admin API shows it.
pub async fn health(proxy: &Proxy, name: &str) -> String {
    proxy.backend(name).await["health"].as_str().unwrap().to_owned()
}

const GOOD: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_500_of_every_engine_ejects_none_and_is_forwarded() {
    let case = case("03-status-500");
    let engines = [
        validating_engine(case.answer.clone()).await,
        validating_engine(case.answer.clone()).await,
    ];
    let proxy = Proxy::start("", &[engines[0].engine("a"), engines[1].engine("b")]).await;
    for _ in 0..MANY {
        let answer = ask(&proxy, &case.request).await;
        assert_eq!(answer.status, 500, "{answer:?}");
        let error: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(error["error"]["message"], "why");
        assert_eq!(proxy.post("/v1/chat/completions", GOOD).await.status, 200);
    }
    for name in ["a", "b"] {
        assert_eq!(health(&proxy, name).await, "up");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_engine_is_tried_once_and_not_ejected() {
    let case = case("03-status-500");
    let engine = validating_engine(case.answer.clone()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    for n in 1..=MANY {
        assert_eq!(ask(&proxy, &case.request).await.status, 500);
        assert_eq!(engine.received().len(), n, "the same engine would give the same answer");
    }
    assert_eq!(proxy.post("/v1/chat/completions", GOOD).await.status, 200);
    assert_eq!(health(&proxy, "a").await, "up");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn valid_requests_are_served_among_as_many_failing_ones() {
    let case = case("03-status-500");
    let engines = [
        validating_engine(case.answer.clone()).await,
        validating_engine(case.answer.clone()).await,
    ];
    let proxy = Proxy::start("", &[engines[0].engine("a"), engines[1].engine("b")]).await;
    for _ in 0..5 {
        let good = (0..8).map(|_| proxy.post("/v1/chat/completions", GOOD));
        let bad = (0..8).map(|_| ask(&proxy, &case.request));
        let (good, bad) = tokio::join!(join_all(good), join_all(bad));
        assert!(good.iter().all(|answer| answer.status == 200));
        assert!(bad.iter().all(|answer| answer.status == 500));
    }
    proxy.settles().await;
}

/// Awaits all futures concurrently.
pub async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pinned: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = pinned.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in pinned.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(output) = future.as_mut().poll(context)
            {
                *done = Some(output);
            }
        }
        match done.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_event_below_500_is_a_client_error_and_final() {
    let case = case("03-error-event");
    let engines =
        [RawEngine::start(case.answer.clone()).await, RawEngine::start(case.answer.clone()).await];
    let proxy = Proxy::start("", &[engines[0].engine("a"), engines[1].engine("b")]).await;
    for n in 1..=MANY {
        let answer = ask(&proxy, &case.request).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.text(), r#"{"error":{"message":"m","code":400}}"#);
        let requests = engines.iter().map(|engine| engine.received().len()).sum::<usize>();
        assert_eq!(requests, n, "the request is not retried");
    }
    for name in ["a", "b"] {
        assert_eq!(health(&proxy, name).await, "up");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_fails_requests_another_serves_is_ejected() {
    let error = r#"{"error":{"message":"CUDA error","code":500}}"#;
    let broken = Fake::start([], Act::Json(500, error.into())).await;
    let good = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let top = "[outlier_ejection]\nejection_seconds = 600\nejection_max_seconds = 600\n";
    let proxy = Proxy::start(top, &[plain("broken", &broken), plain("good", &good)]).await;
    let mut requests = 0;
    while health(&proxy, "broken").await != "ejected" {
        let body = chat_with(false, &format!("{requests} words ").repeat(9), "");
        assert_eq!(proxy.post("/v1/chat/completions", &body).await.status, 200);
        requests += 1;
        assert!(requests < 200, "the engine is never ejected");
    }
    let reason = proxy.backend("broken").await["health_reason"].to_string();
    assert!(reason.contains("CUDA error"), "{reason}");
    let before = broken.sent().len();
    for _ in 0..MANY {
        assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    }
    assert_eq!(broken.sent().len(), before, "it gets nothing more");
    assert_eq!(health(&proxy, "good").await, "up");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ejected_engine_is_used_if_no_other_is_left() {
    let broken = Fake::start(vec![Act::Drop; 60], Act::Json(200, chat_answer("again"))).await;
    let good = RawEngine::scripted(|number, _| match number {
        0..60 => ok(&chat_answer("hello")),
        _ => vec![Play::bytes("HTTP/1.1 429 X\r\nretry-after: 30\r\ncontent-length: 0\r\n\r\n")],
    })
    .await;
    let top = "[outlier_ejection]\nejection_seconds = 600\nejection_max_seconds = 600\n";
    let proxy = Proxy::start(top, &[plain("broken", &broken), good.engine("good")]).await;
    for _ in 0..60 {
        assert_eq!(proxy.post("/v1/chat/completions", GOOD).await.status, 200);
    }
    // The healthy engine is busy: another one gets the request, and one success restores it.
    let mut served = false;
    for _ in 0..60 {
        served |= proxy.post("/v1/chat/completions", GOOD).await.body.contains("again");
    }
    assert!(served);
    proxy.settles().await;
}

/// Streams one token, then waits for the test; serves all other requests.
async fn pausing_engine() -> RawEngine {
    let case = case("01-silent");
    RawEngine::scripted(move |number, _| match number {
        0 => vec![Play::Bytes(case.answer.clone()), Play::Wait, Play::bytes(END)],
        _ => ok(&chat_answer("hello")),
    })
    .await
}

const END: &str = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_with_a_paused_stream_serves_other_requests() {
    let engine = pausing_engine().await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let mut client = RawClient::connect(proxy.data).await;
    client.send(&case("01-silent").request).await;
    client.read_to("\"a\"").await;
    proxy.shows("a", |backend| backend["health"] == "silent").await;
    assert_eq!(proxy.post("/v1/chat/completions", GOOD).await.status, 200);
    engine.resume();
    assert!(client.answer().await.whole, "a pause is not a failure");
    proxy.shows("a", |backend| backend["health"] == "up").await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_with_paused_streams_is_placed_last() {
    let engine = pausing_engine().await;
    let other = Fake::start([], Act::Json(200, chat_answer("other"))).await;
    let slow = "engine = \"plain\"\nmodels = [\"m\"]\n\
                prefill_prior = { base_seconds = 0.001, per_token_seconds = 1e-9 }";
    let proxy = Proxy::start("", &[engine.engine_with("a", slow), plain("other", &other)]).await;
    let mut client = RawClient::connect(proxy.data).await;
    while engine.received().is_empty() {
        client = RawClient::connect(proxy.data).await;
        client.send(&case("01-silent").request).await;
        client.read_to("\r\n\r\n").await;
    }
    proxy.shows("a", |backend| backend["health"] == "silent").await;
    let before = engine.received().len();
    for _ in 0..MANY {
        assert_eq!(proxy.post("/v1/chat/completions", GOOD).await.status, 200);
    }
    assert_eq!(engine.received().len(), before);
    drop(client);
    proxy.settles().await;
}

/// Returns a stream that exceeds the socket buffers.
fn flood() -> Vec<Play> {
    let event = format!(
        "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}},\"finish_reason\":null}}]}}\n\n",
        "x".repeat(16 << 10)
    );
    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut plays = vec![Play::bytes(head)];
    plays.extend((0..2000).map(|_| Play::bytes(chunk.clone())));
    plays
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_is_no_evidence_against_its_engine() {
    let engine = RawEngine::scripted(|number, _| match number {
        0 => flood(),
        _ => ok(&chat_answer("hello")),
    })
    .await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let mut client = RawClient::with_small_buffer(proxy.data).await;
    client.send(&case("01-silent").request).await;
    until("the engine is blocked", || engine.playing() == 1).await;
    // Longer than the silence limit of a stream.
    for _ in 0..35 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(health(&proxy, "a").await, "up");
    }
    assert_eq!(engine.playing(), 1, "it is still blocked");
    assert_eq!(proxy.post("/v1/chat/completions", GOOD).await.status, 200);
    drop(client);
    proxy.settles().await;
}

const TOOL_CHOICE: &str = ",\"tool_choice\":\"required\",\"tools\":[]";

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_leg_refused_for_its_edits_runs_colocated_and_is_no_failure() {
    let refusal = case("05-tool-choice").answer;
    let prefill = RawEngine::scripted(move |_, request| {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        match (body["max_tokens"] == 1, body["tool_choice"] == "required") {
            (true, true) => vec![Play::Bytes(refusal.clone())],
            (true, false) => ok(&prefill_answer()),
            (false, _) => ok(&chat_answer("whole")),
        }
    })
    .await;
    let decode = Fake::start([], Act::Json(200, chat_answer("split"))).await;
    let more =
        "engine = \"vllm\"\nconnector = \"nixl\"\nrole = \"prefill\"\npin = true\nmodels = [\"m\"]";
    let decoder =
        "engine = \"vllm\"\nconnector = \"nixl\"\nrole = \"decode\"\npin = true\nmodels = [\"m\"]";
    let engines = [prefill.engine_with("p", more), vllm("d", decode.url(), decoder)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    let disliked = chat_with(false, &"word ".repeat(400), TOOL_CHOICE);
    let edited = || {
        let is_edited =
            |r: &Received| String::from_utf8_lossy(&r.body).contains("do_remote_decode");
        prefill.received().iter().filter(|request| is_edited(request)).count()
    };
    for n in 0..MANY {
        let answer = proxy.post("/v1/chat/completions", &disliked).await;
        assert_eq!(answer.status, 200, "{n}: {}", answer.body);
        assert_eq!(edited(), 1, "from the second on it runs whole at once");
    }
    assert_eq!(health(&proxy, "p").await, "up");
    let answer = proxy.post("/v1/chat/completions", &chat(false)).await;
    assert!(answer.body.contains("split"), "other requests are still split: {}", answer.body);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_key_is_sent_and_a_missing_one_is_reported() {
    let refused = case("08-engine-key");
    let engine = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let locked = Fake::start([], Act::Json(200, chat_answer("locked"))).await;
    locked.set_answer("/v1/models", 401, "");
    let directory = std::env::temp_dir().join(format!("tidegate-key-{}", std::process::id()));
    std::fs::write(&directory, "\u{feff}engine-key\r\n").unwrap();
    let more = format!("engine = \"plain\"\napi_key_file = {directory:?}");
    let engines = [vllm("a", engine.url(), Box::leak(more.into_boxed_str())), plain("b", &locked)];
    let proxy = Proxy::start_cold("", &engines);
    until("it listens", || std::net::TcpStream::connect(proxy.admin).is_ok()).await;
    let shown = proxy.shows("b", |backend| backend["misfits"][0].is_string()).await;
    assert!(shown["misfits"][0].as_str().unwrap().contains("401"), "{shown}");
    proxy.shows("a", |backend| backend["health"] == "up").await;
    let mut answer = ask(&proxy, &refused.request).await;
    while answer.status == 404 {
        answer = ask(&proxy, &refused.request).await;
    }
    assert_eq!(answer.status, 200, "{answer:?}");
    let sent = engine.sent();
    let keys: Vec<_> = sent[0].headers.get_all("authorization").iter().collect();
    assert_eq!(keys, ["Bearer engine-key"], "and not the client's");
    std::fs::remove_file(&directory).unwrap();
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_ejects_its_engine_only_if_another_is_left() {
    let begun = chat_chunks(5)[..4].to_vec();
    let fake = Fake::start([], Act::Break(begun)).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    for _ in 0..MANY {
        let mut answer = open(proxy.data, post("/v1/chat/completions", chat(true))).await.unwrap();
        while answer.chunk().await.is_some() {}
        assert_eq!(answer.response.status(), 200);
    }
    assert_eq!(health(&proxy, "a").await, "up", "it is the last one");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_h2_streams_with_window_0_are_no_evidence_against_their_engines() {
    let engines = [streaming_engine().await, streaming_engine().await];
    let proxy = Proxy::start("", &[engines[0].engine("a"), engines[1].engine("b")]).await;
    let (mut sender, driver) = h2_without_window(proxy.data).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut request = post("/v1/chat/completions", chat(true));
        *request.uri_mut() = "http://test/v1/chat/completions".parse().unwrap();
        held.push(sender.send_request(request).await.unwrap());
    }
    for _ in 0..35 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        for name in ["a", "b"] {
            assert_eq!(health(&proxy, name).await, "up");
        }
    }
    assert_eq!(proxy.post("/v1/chat/completions", GOOD).await.status, 200);
    drop((held, sender));
    driver.abort();
    proxy.settles().await;
}

/// Streams tokens without end, at intervals, to streamed requests.
async fn streaming_engine() -> RawEngine {
    RawEngine::scripted(|_, request| {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        if body["stream"] != true {
            return ok(&chat_answer("hello"));
        }
        let mut plays = flood()[..2].to_vec();
        let token = plays[1].clone();
        plays.extend(
            (0..2000).flat_map(|_| [Play::Pause(Duration::from_millis(10)), token.clone()]),
        );
        plays
    })
    .await
}
