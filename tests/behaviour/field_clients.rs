//! Client connection behaviour: half-close, pipelining, and unread answers.

use std::time::Duration;

use crate::client::until;
use crate::field::{Play, RawClient, RawEngine, ask, case};
use crate::field_stream::{EVENTS, STREAM, chunk, request};
use crate::proxy::Proxy;

const CHAT: &str = "/v1/chat/completions";
const WHOLE: &str = r#"{"model":"m","messages":[]}"#;
const ANSWER: &str = "HTTP/1.1 200 X\r\ncontent-length: 2\r\n\r\n{}";

#[tokio::test(flavor = "multi_thread")]
async fn transfer_encoding_identity_is_ignored() {
    let case = case("14-te-identity");
    let engine = RawEngine::start(case.answer.clone()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    for n in 1..5 {
        let answer = ask(&proxy, &case.request).await;
        assert_eq!((answer.status, &*answer.body), (200, &b"{}"[..]));
        assert_eq!(engine.received().len(), n);
    }
    // A request may not end this way.
    let text =
        "POST / HTTP/1.1\r\nhost: t\r\ntransfer-encoding: identity\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(ask(&proxy, text.as_bytes()).await.status, 501);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_half_closes_gets_its_answer() {
    let case = case("14-half-close");
    // Immediately, and after a probe.
    for wait in [0, 1500] {
        let plays = [Play::Pause(Duration::from_millis(wait)), Play::Bytes(case.answer.clone())];
        let engine = RawEngine::scripted(move |_, _| plays.to_vec()).await;
        let proxy = Proxy::start("", &[engine.engine("a")]).await;
        let mut client = RawClient::connect(proxy.data).await;
        client.send(&case.request).await;
        client.half_close().await;
        let answer = client.answer().await;
        assert_eq!((answer.status, &*answer.body), (200, &b"{}"[..]));
        assert!(client.is_closed().await);
        // Two requests at once, then the end.
        let mut client = RawClient::connect(proxy.data).await;
        client.send(&[&case.request[..], &case.request[..]].concat()).await;
        client.half_close().await;
        assert_eq!(client.answer().await.status, 200);
        assert_eq!(client.answer().await.status, 200);
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_continues_after_a_half_close() {
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let plays = vec![
        Play::bytes(EVENTS),
        chunk(token),
        Play::Pause(Duration::from_millis(1500)),
        chunk(&format!("{token}data: [DONE]\n\n")),
        Play::bytes("0\r\n\r\n"),
    ];
    let engine = RawEngine::scripted(move |_, _| plays.clone()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let mut client = RawClient::connect(proxy.data).await;
    client.send(&request(CHAT, STREAM)).await;
    client.half_close().await;
    let answer = client.answer().await;
    let text = answer.text().replace(": keepalive\n\n", "");
    assert_eq!(text, format!("{token}{token}data: [DONE]\n\n"));
    assert!(answer.whole);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnect_is_detected_in_every_stage_of_a_request() {
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    for (body, plays) in [
        (WHOLE, vec![Play::Wait]),
        (STREAM, vec![Play::Wait]),
        (STREAM, vec![Play::bytes(EVENTS), chunk(token), Play::Wait]),
    ] {
        let engine = RawEngine::scripted(move |_, _| plays.clone()).await;
        let proxy = Proxy::start("", &[engine.engine("a")]).await;
        let mut client = RawClient::connect(proxy.data).await;
        client.send(&request(CHAT, body)).await;
        until("the engine has it", || engine.playing() == 1).await;
        drop(client);
        until("the engine sees it", || engine.left() == 1).await;
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_close_is_handled_by_the_setting() {
    let plays = [Play::Wait, Play::bytes(ANSWER)];
    let engine = RawEngine::scripted(move |_, _| plays.to_vec()).await;
    let proxy = Proxy::start("half_close = \"cancel\"\n", &[engine.engine("a")]).await;
    let mut client = RawClient::connect(proxy.data).await;
    client.send(&request(CHAT, WHOLE)).await;
    until("the engine has it", || engine.playing() == 1).await;
    client.half_close().await;
    until("the engine sees it", || engine.left() == 1).await;
    assert!(client.is_closed().await);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_buffer_wait() {
    let plays = [Play::Wait, Play::bytes(ANSWER)];
    let engine = RawEngine::scripted(move |_, _| plays.to_vec()).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let large = format!(r#"{{"model":"m","messages":[],"x":"{}"}}"#, "y".repeat(50_000));
    const N: usize = 8;
    let all = request(CHAT, &large).repeat(N);
    let mut client = RawClient::connect(proxy.data).await;
    client.send(&all).await;
    for _ in 0..N {
        engine.resume();
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(engine.received().len(), N);
    proxy.settles().await;
}
