//! Kept upstream connections: bytes that an engine sends beyond its answer reach no other client.

use std::time::Duration;

use crate::field::{Play, RawClient, RawEngine};
use crate::proxy::Proxy;

const SURPLUS: &str = "HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"surplus\":true}\n";

fn answer(number: usize) -> String {
    let body = format!("{{\"number\":{number}}}");
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// An engine that sends a second answer `late` after each, and a client that asks again `pause`
/// later: each answer must be its own.
async fn no_answer_is_crossed(late: Duration, pause: Duration, requests: usize) {
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
    no_answer_is_crossed(Duration::ZERO, Duration::ZERO, 50).await;
    no_answer_is_crossed(Duration::from_micros(3), ms(5), 30).await;
    no_answer_is_crossed(ms(10), ms(40), 15).await;
}
