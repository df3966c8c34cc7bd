//! Attribution of failures: an engine's health depends on its own failures, not on those of a
//! request or a client, nor on silent streams. Field cases 01, 03, 05 and 08.

use std::time::Duration;

use crate::client::{h2_without_window, open, post, until};
use crate::fake::{Act, Fake, chat_answer, chat_chunks, prefill_answer};
use crate::field::{Play, RawClient, RawEngine, Received, ask, case};
use crate::proxy::{DECODE, PREFILL, Proxy, SPLIT, chat, chat_with, plain, vllm};

/// Number of bad requests that a client may send in a row without affecting others.
const MANY: usize = 12;

fn ok(body: &str) -> Vec<Play> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
    vec![Play::bytes(format!("{head}{}\r\n\r\n{body}", body.len()))]
}

fn is_bad(request: &Received) -> bool {
    request.body.ends_with(b"[1]}")
}

/// An engine that answers bad requests in this way, and serves the others.
async fn judges(answer: bytes::Bytes) -> RawEngine {
    RawEngine::scripted(move |_, request| match is_bad(request) {
        true => vec![Play::Bytes(answer.clone())],
        false => ok(&chat_answer("hello")),
    })
    .await
}

async fn health(proxy: &Proxy, name: &str) -> String {
    proxy.backend(name).await["health"].as_str().unwrap().to_owned()
}

const GOOD: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_every_engine_answers_with_500_takes_none_out_and_gets_their_words() {
    let case = case("03-status-500");
    let engines = [judges(case.answer.clone()).await, judges(case.answer.clone()).await];
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
async fn a_lone_engine_is_asked_once_and_keeps_its_place() {
    let case = case("03-status-500");
    let engine = judges(case.answer.clone()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    for n in 1..=MANY {
        assert_eq!(ask(&proxy, &case.request).await.status, 500);
        assert_eq!(engine.received().len(), n, "the same engine would say the same");
    }
    assert_eq!(proxy.post("/v1/chat/completions", GOOD).await.status, 200);
    assert_eq!(health(&proxy, "a").await, "up");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn good_requests_are_served_beside_as_many_bad_ones() {
    let case = case("03-status-500");
    let engines = [judges(case.answer.clone()).await, judges(case.answer.clone()).await];
    let proxy = Proxy::start("", &[engines[0].engine("a"), engines[1].engine("b")]).await;
    for _ in 0..5 {
        let good = (0..8).map(|_| proxy.post("/v1/chat/completions", GOOD));
        let bad = (0..8).map(|_| ask(&proxy, &case.request));
        let (good, bad) = tokio::join!(all(good), all(bad));
        assert!(good.iter().all(|answer| answer.status == 200));
        assert!(bad.iter().all(|answer| answer.status == 500));
    }
    proxy.settles().await;
}

async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
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
async fn an_error_event_below_500_is_the_requests_own_and_final() {
    let case = case("03-error-event");
    let engines =
        [RawEngine::start(case.answer.clone()).await, RawEngine::start(case.answer.clone()).await];
    let proxy = Proxy::start("", &[engines[0].engine("a"), engines[1].engine("b")]).await;
    for n in 1..=MANY {
        let answer = ask(&proxy, &case.request).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.text(), r#"{"error":{"message":"m","code":400}}"#);
        let asked = engines.iter().map(|engine| engine.received().len()).sum::<usize>();
        assert_eq!(asked, n, "it is not tried elsewhere");
    }
    for name in ["a", "b"] {
        assert_eq!(health(&proxy, name).await, "up");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_fails_what_the_other_serves_is_ejected() {
    let error = r#"{"error":{"message":"CUDA error","code":500}}"#;
    let broken = Fake::start([], Act::Json(500, error.into())).await;
    let good = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let top = "[outlier_ejection]\nejection_seconds = 600\nejection_max_seconds = 600\n";
    let proxy = Proxy::start(top, &[plain("broken", &broken), plain("good", &good)]).await;
    let mut asked = 0;
    while health(&proxy, "broken").await != "ejected" {
        let body = chat_with(false, &format!("{asked} words ").repeat(9), "");
        assert_eq!(proxy.post("/v1/chat/completions", &body).await.status, 200);
        asked += 1;
        assert!(asked < 200, "it is never ejected");
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
async fn an_ejected_engine_is_better_than_none() {
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
async fn pauses() -> RawEngine {
    let case = case("01-silent");
    RawEngine::scripted(move |number, _| match number {
        0 => vec![Play::Bytes(case.answer.clone()), Play::Wait, Play::bytes(END)],
        _ => ok(&chat_answer("hello")),
    })
    .await
}

const END: &str = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn others_are_served_by_an_engine_whose_stream_pauses() {
    let engine = pauses().await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let mut client = RawClient::connect(proxy.data).await;
    client.send(&case("01-silent").request).await;
    client.read_to("\"a\"").await;
    proxy.shows("a", |backend| backend["health"] == "silent").await;
    assert_eq!(proxy.post("/v1/chat/completions", GOOD).await.status, 200);
    engine.go_on();
    assert!(client.answer().await.whole, "a pause is no failure");
    proxy.shows("a", |backend| backend["health"] == "up").await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_whose_stream_pauses_comes_last() {
    let engine = pauses().await;
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
async fn a_client_that_does_not_read_says_nothing_of_its_engine() {
    let engine = RawEngine::scripted(|number, _| match number {
        0 => flood(),
        _ => ok(&chat_answer("hello")),
    })
    .await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let mut client = RawClient::with_little_room(proxy.data).await;
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
async fn a_prefill_leg_whose_edits_an_engine_dislikes_runs_whole_and_marks_nothing() {
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
    assert!(answer.body.contains("split"), "others are split as before: {}", answer.body);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_with_a_key_of_its_own_is_sent_it_and_one_without_shows_what_it_lacks() {
    let refused = case("08-engine-key");
    let engine = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let locked = Fake::start([], Act::Json(200, chat_answer("locked"))).await;
    locked.tells("/v1/models", 401, "");
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
async fn a_stream_that_breaks_off_ejects_its_engine_only_among_others() {
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

/// Probe settings that detect a hung engine quickly.
const SOON: &str = "[probe]\ninterval_seconds = 0.05\ntimeout_seconds = 0.3\nfailures_to_eject = 2\n\
                    slow_return_seconds = 0\n";

#[tokio::test(flavor = "multi_thread")]
async fn requests_leave_an_engine_that_is_found_dead_and_get_no_false_504() {
    let hung = Fake::start([], Act::Silent).await;
    let good = Fake::start([], Act::Json(200, chat_answer("elsewhere"))).await;
    let top = format!("[queue]\ndeadline_seconds = 0.5\n{SOON}");
    let proxy = Proxy::start(&top, &[plain("hung", &hung), plain("good", &good)]).await;
    let asked = (0..MANY).map(|n| {
        let body = chat_with(false, &format!("{n} words ").repeat(9), "");
        let proxy = &proxy;
        async move { proxy.post("/v1/chat/completions", &body).await }
    });
    let hangs = async {
        until("some of them hang", || hung.hanging() > 0).await;
        hung.hang_probes();
    };
    let (answers, ()) = tokio::join!(all(asked), hangs);
    for answer in answers {
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.body.contains("elsewhere"));
    }
    assert_eq!(health(&proxy, "hung").await, "down");
    until("the legs there are given up", || hung.hanging() == 0).await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_prefill_engine_is_found_dead_gets_a_fresh_prefill() {
    for decode_hangs in [false, true] {
        let prefill = Fake::start([], Act::Json(200, prefill_answer())).await;
        let hung = Fake::start([], Act::Silent).await;
        let decodes = Fake::start([], Act::Json(200, chat_answer("elsewhere"))).await;
        let hung_more = if decode_hangs { DECODE } else { PREFILL };
        let engines = [
            vllm("hung", hung.url(), hung_more),
            vllm("p", prefill.url(), PREFILL),
            vllm("d", decodes.url(), DECODE),
        ];
        let proxy = Proxy::start(&format!("{SPLIT}{SOON}"), &engines).await;
        let asked = (0..MANY).map(|n| {
            let body = chat_with(false, &format!("{n} words ").repeat(200), "");
            let proxy = &proxy;
            async move { proxy.post("/v1/chat/completions", &body).await }
        });
        let hangs = async {
            until("some of them hang", || hung.hanging() > 0).await;
            hung.hang_probes();
        };
        let (answers, ()) = tokio::join!(all(asked), hangs);
        assert!(answers.iter().all(|answer| answer.status == 200), "{decode_hangs}");
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_engine_whose_probes_are_late_is_still_asked() {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start(SOON, &[plain("a", &fake)]).await;
    fake.hang_probes();
    proxy.shows("a", |backend| backend["health"] == "down").await;
    assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_late_is_tried_elsewhere_too() {
    for stream in [true, false] {
        let act =
            if stream { Act::Chunks(chat_chunks(3)) } else { Act::Json(200, chat_answer("x")) };
        // The engine that is asked first never answers, and is otherwise healthy.
        let fakes = Fake::start_sharing([Act::Silent], act, 2).await;
        let prior = "engine = \"plain\"\n[backends.decode_prior]\nbase_seconds = 0.0001\n\
                     per_stream_seconds = 1e-6\n";
        let engines = [vllm("a", fakes[0].url(), prior), vllm("b", fakes[1].url(), prior)];
        let proxy = Proxy::start("[retry]\nhedge_seconds = 0.3\n", &engines).await;
        let answer = proxy.post("/v1/chat/completions", &chat_with(stream, "hi", "")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        until("the one that was overtaken is given up", || {
            fakes.iter().all(|fake| fake.hanging() == 0)
        })
        .await;
        let sent = [fakes[0].sent(), fakes[1].sent()];
        assert_eq!([sent[0].len(), sent[1].len()], [1, 1], "each was asked once");
        assert_ne!(
            sent[0][0].headers["x-request-id"], sent[1][0].headers["x-request-id"],
            "a second leg has an id of its own"
        );
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hedge_on_an_engine_that_is_found_dead_is_given_up() {
    let fakes = Fake::start_sharing([], Act::Silent, 2).await;
    let prior = "engine = \"plain\"\n[backends.decode_prior]\nbase_seconds = 0.0001\n\
                 per_stream_seconds = 1e-6\n";
    let engines = [vllm("a", fakes[0].url(), prior), vllm("b", fakes[1].url(), prior)];
    let proxy = Proxy::start(&format!("[retry]\nhedge_seconds = 0.3\n{SOON}"), &engines).await;
    let body = chat_with(false, "hi", "");
    let dies = async {
        until("one is asked", || fakes.iter().any(|fake| fake.hanging() == 1)).await;
        let second = if fakes[0].hanging() == 1 { &fakes[1] } else { &fakes[0] };
        until("the other is asked too", || second.hanging() == 1).await;
        second.hang_probes();
        until("the second leg is given up", || second.hanging() == 0).await;
    };
    tokio::select! {
        answer = proxy.post("/v1/chat/completions", &body) => panic!("{} {}", answer.status, answer.body),
        () = dies => {}
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_h2_streams_with_window_0_say_nothing_of_their_engines() {
    let engines = [chatty().await, chatty().await];
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
async fn chatty() -> RawEngine {
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

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_running_streams_are_a_better_proof_than_a_probe() {
    let fake = Fake::start([], Act::Chunks(chat_chunks(400))).await;
    let proxy = Proxy::start("[probe]\ninterval_seconds = 0.1\n", &[plain("a", &fake)]).await;
    let mut answer = open(proxy.data, post("/v1/chat/completions", chat(true))).await.unwrap();
    answer.chunk().await.unwrap().unwrap();
    fake.tells("/health", 503, "");
    // Many probes, and tokens throughout.
    for _ in 0..200 {
        answer.chunk().await.unwrap().unwrap();
        assert_eq!(health(&proxy, "a").await, "up");
    }
    assert!(fake.asked("/health") > 2, "it was probed meanwhile");
    while answer.chunk().await.is_some() {}
    proxy.shows("a", |backend| backend["health"] == "down").await;
    let reason = proxy.backend("a").await["health_reason"].to_string();
    assert!(reason.contains("503"), "{reason}");
    proxy.settles().await;
}
