//! A client disconnect cancels all legs of its request, in every state.

use crate::client::{leave_later, open, post, until};
use crate::fake::{Act, Fake, chat_chunks, prefill_answer};
use crate::proxy::{DECODE, PREFILL, Proxy, SPLIT, chat, plain, vllm};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_between_two_tokens_cancels_its_request() {
    let fake = Fake::start([], Act::Hang(chat_chunks(2)[..2].to_vec())).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let mut stream = open(proxy.data, post("/v1/chat/completions", chat(true))).await.unwrap();
    stream.chunk().await.unwrap().unwrap();
    drop(stream);
    until("the engine sees it", || fake.hanging() == 0).await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_the_first_byte_cancels_its_request() {
    let fake = Fake::start([], Act::Silent).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    for stream in [true, false] {
        let client = leave_later(proxy.data, post("/v1/chat/completions", chat(stream)));
        until("the engine has it", || fake.hanging() == 1).await;
        client.abort();
        until("the engine sees it", || fake.hanging() == 0).await;
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_the_queue_cancels_its_request() {
    let fake = Fake::start([], Act::Silent).await;
    let mut engine = plain("a", &fake);
    engine.more = "engine = \"plain\"\nstreams_max = 1";
    let proxy = Proxy::start("", &[engine]).await;
    let first = leave_later(proxy.data, post("/v1/chat/completions", chat(true)));
    until("the engine is taken", || fake.hanging() == 1).await;
    let second = leave_later(proxy.data, post("/v1/chat/completions", chat(true)));
    until("one waits", || proxy.waiting() == 1).await;
    second.abort();
    until("none waits", || proxy.waiting() == 0).await;
    first.abort();
    proxy.settles().await;
    assert_eq!(fake.sent().len(), 1, "the second never reached the engine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_a_split_request_cancels_its_leg() {
    let p = Fake::start([Act::Silent], Act::Json(200, prefill_answer())).await;
    let d = Fake::start([], Act::Silent).await;
    let engines = [vllm("p", p.url(), PREFILL), vllm("d", d.url(), DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    let client = leave_later(proxy.data, post("/v1/chat/completions", chat(true)));
    until("it prefills", || p.hanging() == 1).await;
    client.abort();
    until("the prefill is cancelled", || p.hanging() == 0).await;
    proxy.settles().await;
    assert!(d.sent().is_empty());
    let client = leave_later(proxy.data, post("/v1/chat/completions", chat(true)));
    until("it decodes", || d.hanging() == 1).await;
    client.abort();
    until("the decode is cancelled", || d.hanging() == 0).await;
    proxy.settles().await;
}
