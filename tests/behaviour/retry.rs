//! Failures before the first byte are retried on another engine; later ones end with an error.

use crate::client::Answer;
use crate::fake::{Act, Fake, Sent, chat_answer, chat_chunks};
use crate::proxy::{Proxy, RefusingAddress, chat, plain, vllm};

/// Starts two engines: the first to receive a request runs `act`, the other serves. Returns the client's
/// answer and the requests that the engines received.
async fn first_fails(act: Act, stream: bool) -> (Answer, Vec<Sent>) {
    let good = match stream {
        true => Act::Chunks(chat_chunks(4)),
        false => Act::Json(200, chat_answer("saved")),
    };
    let fakes = Fake::start_sharing([act], good, 2).await;
    let proxy = Proxy::start("", &[plain("a", &fakes[0]), plain("b", &fakes[1])]).await;
    let answer = proxy.post("/v1/chat/completions", &chat(stream)).await;
    proxy.settles().await;
    let sent: Vec<Vec<Sent>> = fakes.iter().map(Fake::sent).collect();
    assert!(sent.iter().all(|sent| sent.len() <= 1), "a retry goes to another backend");
    (answer, sent.concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_before_the_first_byte_is_retried() {
    let role_chunk = chat_chunks(0)[..1].to_vec();
    let error =
        "data: {\"error\":{\"message\":\"KV load failed\",\"code\":500}}\n\ndata: [DONE]\n\n";
    let rows = [
        (Act::Json(500, "{\"error\":{}}".into()), false),
        (Act::Json(503, "{\"error\":{}}".into()), true),
        (Act::Break(vec![]), true),
        (Act::Break(role_chunk), true),
        (Act::Chunks(vec![error.to_owned()]), true),
    ];
    for (act, stream) in rows {
        let what = format!("{act:?}");
        let (answer, sent) = first_fails(act, stream).await;
        assert_eq!(answer.status, 200, "{what}: {}", answer.body);
        let expected = if stream { chat_chunks(4).concat() } else { chat_answer("saved") };
        assert_eq!(answer.body, expected, "{what}");
        assert_eq!(sent.len(), 2, "{what}");
        let ids: Vec<_> = sent.iter().map(|sent| &sent.headers["x-request-id"]).collect();
        assert_ne!(ids[0], ids[1], "{what}: a retry has a fresh id");
        assert_eq!(sent[0].body, sent[1].body, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_before_the_answer_is_retried() {
    // The engine may have closed the connection before the request arrived: the proxy retries on a
    // fresh connection, then on another backend.
    for stream in [true, false] {
        let good = match stream {
            true => Act::Chunks(chat_chunks(4)),
            false => Act::Json(200, chat_answer("saved")),
        };
        for cuts in 1..=2 {
            let script = vec![Act::Drop; cuts];
            let fakes = Fake::start_sharing(script, good.clone(), 2).await;
            let proxy = Proxy::start("", &[plain("a", &fakes[0]), plain("b", &fakes[1])]).await;
            let answer = proxy.post("/v1/chat/completions", &chat(stream)).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            proxy.settles().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_error_is_not_retried() {
    let refused = "{\"error\":{\"message\":\"no\",\"type\":\"BadRequestError\",\"code\":400}}";
    let (answer, sent) = first_fails(Act::Json(400, refused.into()), false).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (400, refused));
    assert_eq!(sent.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_first_byte_the_stream_ends_with_an_error_event() {
    let begun = chat_chunks(5)[..4].to_vec();
    let (answer, sent) = first_fails(Act::Break(begun.clone()), true).await;
    assert_eq!(answer.status, 200);
    assert_eq!(sent.len(), 1, "what the client has seen is not done again");
    let rest = answer.body.strip_prefix(&begun.concat()).expect("earlier events are unchanged");
    let event = rest.trim_start().strip_prefix("data: ").unwrap().lines().next().unwrap();
    let error: serde_json::Value = serde_json::from_str(event).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("backend"), "{event}");
    assert!(answer.body.ends_with("data: [DONE]\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_an_end_mark_is_a_failure() {
    let begun = chat_chunks(5)[..4].to_vec();
    let (answer, _) = first_fails(Act::Chunks(begun), true).await;
    assert!(answer.body.contains("\"error\""), "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_refuses_connections_is_skipped() {
    let good = Fake::start([], Act::Json(200, chat_answer("saved"))).await;
    let refusing = RefusingAddress::new();
    let gone = vllm("gone", refusing.url(), "engine = \"plain\"\nmodels = [\"m\"]");
    let mut there = plain("there", &good);
    there.more = "engine = \"plain\"\nmodels = [\"m\"]";
    let proxy = Proxy::start("", &[gone, there]).await;
    for _ in 0..10 {
        assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    }
    assert_eq!(good.sent().len(), 10);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_keep_alive_connection_does_not_count_against_the_engine() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let top = "[retry]\nattempts = 1\n";
    let proxy = Proxy::start(top, &[plain("a", &fake)]).await;
    for _ in 0..5 {
        assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
        fake.hang_up().await;
    }
    proxy.settles().await;
}
