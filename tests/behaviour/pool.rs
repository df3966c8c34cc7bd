//! Pooled upstream connections: surplus bytes that an engine sends after its answer reach no other
//! client.

use std::time::Duration;

use crate::client::until;
use crate::field::{Play, RawClient, RawEngine};
use crate::proxy::Proxy;

const SURPLUS: &str = "HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"surplus\":true}\n";

fn answer(number: usize) -> String {
    let body = format!("{{\"number\":{number}}}");
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// An engine that sends a second answer after a delay of `late`, and a client that repeats its
/// request after `pause`: each answer must be the client's own.
async fn answers_match_requests(late: Duration, pause: Duration, requests: usize) {
    let engine = RawEngine::scripted(move |number, _| {
        let answered = Play::bytes(answer(number));
        let surplus = Play::bytes(SURPLUS);
        match late.is_zero() {
            true => vec![Play::bytes(answer(number) + SURPLUS)],
            false => vec![answered, Play::Pause(late), surplus],
        }
    })
    .await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let mut client = RawClient::connect(proxy.data).await;
    let body = "{\"model\":\"m\",\"messages\":[]}";
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    for number in 0..requests {
        client.send(request.as_bytes()).await;
        let got = client.answer().await;
        assert_eq!(got.text(), format!("{{\"number\":{number}}}"), "{late:?} late");
        tokio::time::sleep(pause).await;
    }
    assert_eq!(engine.received().len(), requests, "nothing is sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn surplus_bytes_of_an_answer_reach_no_other_client() {
    let ms = Duration::from_millis;
    answers_match_requests(Duration::ZERO, Duration::ZERO, 50).await;
    answers_match_requests(Duration::from_micros(3), ms(5), 30).await;
    answers_match_requests(ms(10), ms(40), 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_idle_time_out_fails_no_request() {
    const TIMED_OUT: &str =
        "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    // Before the next request arrives, and as its answer.
    for (before, after) in [(true, false), (false, true)] {
        let engine = RawEngine::scripted(move |number, _| match (number, before, after) {
            (0, true, _) => {
                vec![Play::bytes(answer(0)), Play::Wait, Play::bytes(TIMED_OUT), Play::Close]
            }
            (1, _, true) => vec![Play::bytes(TIMED_OUT), Play::Close],
            _ => vec![Play::bytes(answer(number))],
        })
        .await;
        let proxy = Proxy::start("", &[engine.engine("a")]).await;
        let ask = || proxy.post("/v1/chat/completions", "{\"model\":\"m\",\"messages\":[]}");
        assert_eq!(ask().await.body, "{\"number\":0}");
        if before {
            engine.resume();
            until("it has closed", || engine.playing() == 0).await;
        }
        // The connection is kept afterwards: the engine is not classified as sending surplus bytes.
        for number in 1..4 {
            let number = if after { number + 1 } else { number };
            assert_eq!(ask().await.body, format!("{{\"number\":{number}}}"), "{before}");
        }
        proxy.shows("a", |backend| backend["health"] == "up").await;
        proxy.settles().await;
    }
    // On a fresh connection it is the engine's answer to the request.
    let engine = RawEngine::start(TIMED_OUT).await;
    let proxy = Proxy::start("", &[engine.engine("a")]).await;
    let answer = proxy.post("/v1/chat/completions", "{\"model\":\"m\",\"messages\":[]}").await;
    // The number of requests is not asserted: a probe may have left a connection, and then two are
    // sent.
    assert_eq!(answer.status.as_u16(), 408);
}
