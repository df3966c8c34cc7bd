//! Field cases of requests: values that only the engine can validate, bodies that name their model
//! in another form, and state stored on one engine.

use crate::client::{get, send};
use crate::fake::{Act, Fake, chat_chunks};
use crate::field::{RawEngine, ask, body_of, case};
use crate::proxy::{DECODE, PREFILL, Proxy, SPLIT, plain, vllm};

#[tokio::test(flavor = "multi_thread")]
async fn unparsed_bodies_are_forwarded_byte_for_byte() {
    for name in
        ["15-minus-one", "15-string", "15-stream-1", "15-no-model", "15-mixed-prompt", "15-bom"]
    {
        let case = case(name);
        let engine = RawEngine::start(case.answer.clone()).await;
        let proxy = Proxy::start("", &[engine.engine("a")]).await;
        let answer = ask(&proxy, &case.request).await;
        assert_eq!((answer.status, answer.whole), (200, true), "{name}: {answer:?}");
        assert_eq!(answer.body, body_of(&case.answer), "{name}");
        let received = engine.received();
        assert_eq!(received.len(), 1, "{name}");
        assert_eq!(received[0].body, body_of(&case.request), "{name}");
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_values_are_forwarded_to_the_engine() {
    let fake =
        Fake::start([], Act::Json(422, "{\"detail\":\"the engine's message\"}".to_owned())).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let chat = "/v1/chat/completions";
    for (path, body) in [
        (chat, r#"{"model":"m"}"#),
        (chat, r#"{"model":"","messages":[]}"#),
        (chat, r#"{"model":null,"messages":null}"#),
        (chat, r#"{"model":{},"messages":[]}"#),
        (chat, r#"{"model":"m","messages":"x"}"#),
        (chat, r#"{"model":"m","messages":[1,null,{"role":2,"content":3}]}"#),
        (chat, r#"{"model":"m","messages":[{"role":"user","content":null}]}"#),
        (chat, r#"{"model":"m","messages":[],"stream":"yes","n":"a","tools":7}"#),
        (chat, r#"{"model":"m","messages":[],"max_tokens":1e400,"seed":1}"#),
        (chat, r#"{"model":"m","messages":[],"stream_options":[],"stream":true}"#),
        ("/v1/completions", r#"{"model":"m","prompt":{}}"#),
        ("/v1/completions", r#"{"prompt":[[],[1,"a"],null]}"#),
        ("/v1/embeddings", r#"{"input":3}"#),
        ("/v1/responses", r#"{"input":{},"max_output_tokens":"all"}"#),
        ("/v1/messages", r#"{"system":9}"#),
        ("/tokenize", "{}"),
    ] {
        let answer = proxy.post(path, body).await;
        assert_eq!(
            (answer.status.as_u16(), &*answer.body),
            (422, "{\"detail\":\"the engine's message\"}")
        );
        assert_eq!(fake.sent().last().unwrap().body, body, "byte for byte");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_an_invalid_value_is_not_split() {
    let engines = [
        Fake::start([], Act::Chunks(chat_chunks(2))).await,
        Fake::start([], Act::Chunks(chat_chunks(2))).await,
    ];
    let [p, d] = &engines;
    let proxy =
        Proxy::start(SPLIT, &[vllm("p", p.url(), PREFILL), vllm("d", d.url(), DECODE)]).await;
    let body = crate::proxy::chat(false).replace("\"stream\":false", "\"stream\":1");
    let answer = proxy.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "the engine's media type decides");
    let sent: Vec<_> = engines.iter().flat_map(Fake::sent).collect();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].body, body);
    proxy.settles().await;
    assert_eq!(send(proxy.admin, get("/readyz")).await.status, 200);
}
