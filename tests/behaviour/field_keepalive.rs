//! Before the first token: tidegate's keep-alive comments, the events that follow them, and
//! failures after them.

use std::time::Duration;

use crate::client::{leave_later, open, post, until};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::field::{Play, RawClient, RawEngine};
use crate::field_stream::{EVENTS, STREAM, chunk, request};
use crate::proxy::{Proxy, chat, plain};

const COMMENT: &str = ": keepalive\n\n";
const SOON: &str = "keepalive_comment_seconds = 0.1\n";
const CHAT: &str = "/v1/chat/completions";

fn without_comments(text: &str) -> String {
    text.replace(COMMENT, "")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_stream_gets_its_head_then_comments_then_tokens() {
    let events = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
    let plays = vec![Play::Wait, Play::bytes(EVENTS), chunk(events), Play::bytes("0\r\n\r\n")];
    let engine = RawEngine::scripted(move |_, _| plays.clone()).await;
    let proxy = Proxy::start(SOON, &[engine.engine("a")]).await;
    let mut client = RawClient::connect(proxy.data).await;
    client.send(&request(CHAT, STREAM)).await;
    client.read_to(&format!("{COMMENT}\r\nd\r\n{COMMENT}")).await;
    let head = client.so_far();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("content-type: text/event-stream\r\n"), "{head}");
    assert!(head.contains("x-request-id: "), "{head}");
    engine.resume();
    let answer = client.answer().await;
    assert!(answer.whole);
    assert_eq!(without_comments(&answer.text()), events);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn comments_continue_until_the_first_token_of_the_answer() {
    let role = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let created = "data: {\"choices\":[],\"prompt_progress\":{}}\n\n";
    let pause = Play::Pause(Duration::from_millis(400));
    let plays = vec![
        Play::bytes(EVENTS),
        chunk(role),
        pause.clone(),
        chunk(created),
        pause.clone(),
        chunk(token),
        pause,
        chunk("data: [DONE]\n\n"),
        Play::bytes("0\r\n\r\n"),
    ];
    let engine = RawEngine::scripted(move |_, _| plays.clone()).await;
    let proxy = Proxy::start(SOON, &[engine.engine("a")]).await;
    let mut client = RawClient::connect(proxy.data).await;
    client.send(&request(CHAT, STREAM)).await;
    let text = client.answer().await.text();
    assert_eq!(without_comments(&text), format!("{role}{created}{token}data: [DONE]\n\n"));
    let (before, after) = text.split_once(created).unwrap();
    assert!(before.starts_with(COMMENT), "{text}");
    assert!(after.starts_with(COMMENT), "{text}");
    assert!(text.ends_with(&format!("{token}data: [DONE]\n\n")), "none after a token: {text}");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_continue_during_keepalive_comments() {
    for first in
        [Play::Close, Play::Reset, Play::bytes("HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n")]
    {
        let pause = Play::Pause(Duration::from_millis(300));
        let event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
        let good = vec![pause.clone(), Play::bytes(EVENTS), chunk(event), Play::bytes("0\r\n\r\n")];
        let bad = vec![pause, first, Play::Close];
        let other = RawEngine::scripted({
            let (bad, good) = (bad.clone(), good.clone());
            move |_, request| {
                if request.head.contains("-retry") { good.clone() } else { bad.clone() }
            }
        })
        .await;
        let engine = RawEngine::scripted(move |_, request| {
            if request.head.contains("-retry") { good.clone() } else { bad.clone() }
        })
        .await;
        let proxy = Proxy::start(SOON, &[engine.engine("a"), other.engine("b")]).await;
        let mut client = RawClient::connect(proxy.data).await;
        client.send(&request(CHAT, STREAM)).await;
        let answer = client.answer().await;
        assert!(answer.text().starts_with(COMMENT), "{answer:?}");
        assert_eq!(without_comments(&answer.text()), event);
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_failure_is_an_error_event_in_the_clients_form() {
    let plays = [
        Play::Pause(Duration::from_millis(300)),
        Play::bytes(
            "HTTP/1.1 400 X\r\ncontent-length: 41\r\n\r\n{\"error\":{\"message\":\"why\",  \n\"code\":400}}",
        ),
    ];
    let engine = RawEngine::scripted(move |_, _| plays.to_vec()).await;
    let proxy = Proxy::start(SOON, &[engine.engine("a")]).await;
    let input = r#"{"model":"m","input":"x","stream":true}"#;
    for (path, body, begins, ends) in [
        (CHAT, STREAM, "data: {\"error\":{", "}}\n\ndata: [DONE]\n\n"),
        ("/v1/messages", STREAM, "event: error\ndata: {\"type\":\"error\",", "}\n\n"),
        ("/v1/responses", input, "event: error\ndata: {", "}\n\n"),
    ] {
        let mut client = RawClient::connect(proxy.data).await;
        client.send(&request(path, body)).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.whole), (200, true));
        let event = without_comments(&answer.text());
        assert!(event.starts_with(begins) && event.ends_with(ends), "{event}");
        assert!(event.contains("\"message\":\"why\""), "{event}");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_non_stream_answer_becomes_a_stream_or_an_error_event() {
    let fake = Fake::start([], Act::Slow(200, chat_answer("hello"))).await;
    let proxy = Proxy::start(SOON, &[plain("a", &fake)]).await;
    let answer = proxy.post(CHAT, &chat(true)).await;
    let stream = without_comments(&answer.body);
    assert!(stream.starts_with("data: {") && stream.contains("\"content\":\"hello\""), "{stream}");
    assert!(stream.contains("\"object\":\"chat.completion.chunk\""), "{stream}");
    assert!(!stream.contains("kv_transfer_params") && !stream.contains("error"), "{stream}");
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    for (body, words) in [
        ("{\"error\":{\"message\":\"out of luck\"}}", "out of luck"),
        ("{\"id\":1}", "not answer with a stream of events but with application/json"),
        ("no JSON", "not answer with a stream of events but with application/json"),
    ] {
        let fake = Fake::start([], Act::Slow(200, body.to_owned())).await;
        let proxy = Proxy::start(SOON, &[plain("a", &fake)]).await;
        let answer = proxy.post(CHAT, &chat(true)).await;
        let event = without_comments(&answer.body);
        assert!(event.starts_with("data: {\"error\"") && event.contains(words), "{event}");
        proxy.settles().await;
    }
    // A request that is not streamed waits for the answer.
    let answer = proxy.post(CHAT, &chat(false)).await;
    assert_eq!(answer.body, chat_answer("hello"));
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn comments_come_while_a_request_waits_in_the_queue_and_its_deadline_is_an_event() {
    let fake = Fake::start([], Act::Silent).await;
    let mut engine = plain("a", &fake);
    engine.more = "engine = \"plain\"\nstreams_max = 1";
    let top = format!("{SOON}[queue]\ndeadline_seconds = 0.5\n");
    let proxy = Proxy::start(&top, &[engine]).await;
    let first = leave_later(proxy.data, post(CHAT, chat(true)));
    until("the engine is taken", || fake.hanging() == 1).await;
    let answer = proxy.post(CHAT, &chat(true)).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.starts_with(COMMENT), "{}", answer.body);
    assert!(answer.body.contains("queue_deadline"), "{}", answer.body);
    first.abort();
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnect_during_keepalive_comments_cancels_the_request() {
    let fake = Fake::start([], Act::Silent).await;
    let proxy = Proxy::start(SOON, &[plain("a", &fake)]).await;
    let mut client = open(proxy.data, post(CHAT, chat(true))).await.unwrap();
    client.chunk().await.unwrap().unwrap();
    assert_eq!(fake.hanging(), 1);
    drop(client);
    until("the engine sees it", || fake.hanging() == 0).await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keepalive_comments_need_an_interval_and_an_event_stream() {
    let mut chunks = chat_chunks(2);
    let fake = Fake::start([], Act::Chunks(chunks.clone())).await;
    let proxy = Proxy::start("keepalive_comment_seconds = 0\n", &[plain("a", &fake)]).await;
    assert_eq!(proxy.post(CHAT, &chat(true)).await.body, chunks.concat());
    chunks = vec!["{\"response\":\"a\"}\n".into(), "{\"done\":true}\n".into()];
    let lines = chunks.concat();
    let length = lines.len();
    let plays = vec![
        Play::Pause(Duration::from_millis(300)),
        Play::bytes(format!(
            "HTTP/1.1 200 X\r\ncontent-type: application/x-ndjson\r\ncontent-length: {length}\r\n\r\n{lines}"
        )),
    ];
    let engine = RawEngine::scripted(move |_, _| plays.clone()).await;
    let proxy = Proxy::start(SOON, &[engine.engine("a")]).await;
    let answer = proxy.post("/api/generate", "{\"model\":\"m\",\"prompt\":\"x\"}").await;
    assert_eq!(answer.body, lines);
    proxy.settles().await;
}
