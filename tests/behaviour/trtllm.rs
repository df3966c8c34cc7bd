//! TensorRT-LLM, context first: opaque state relayed between the legs, and role changes.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use tidegate_emulator::EmulatedEngine;

use crate::client::{post, send};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::fleet::{Emulated, tokens_of};
use crate::proxy::{Engine, Proxy, SPLIT, chat, chat_with};

const PREFILL: &str =
    "engine = \"trtllm\"\nconnector = \"transceiver\"\nrole = \"prefill\"\npin = true";
const DECODE: &str =
    "engine = \"trtllm\"\nconnector = \"transceiver\"\nrole = \"decode\"\npin = true";

fn engine(name: &'static str, url: String, more: &'static str) -> Engine {
    Engine { name, url, more }
}

/// Returns a context's answer with this `finish_reason`.
fn context(finish: &str) -> String {
    let mut answer: Value = serde_json::from_str(&chat_answer("all")).unwrap();
    answer["prompt_token_ids"] = json!([1, 2, 3]);
    answer["choices"][0]["finish_reason"] = json!(finish);
    answer["choices"][0]["disaggregated_params"] = json!({
        "request_type": "context_only", "ctx_request_id": 7, "disagg_request_id": 1_u64 << 41,
        "encoded_opaque_state": "c3RhdGU=",
    });
    answer.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hand_off_transfers_kv_in_both_directions() {
    let fleet = Emulated::of(2, EmulatedEngine::Trtllm).await;
    let free = "engine = \"trtllm\"\nconnector = \"transceiver\"";
    let engines = [engine("a", fleet.url(0), free), engine("b", fleet.url(1), free)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    // A new prompt each time: cached prompts need no hand-off.
    for (turn, (a, b)) in [("prefill", "decode"), ("decode", "prefill")].into_iter().enumerate() {
        for (name, role) in [("a", a), ("b", b)] {
            let body = json!({ "role": role, "pin": true }).to_string();
            assert!(proxy.set_role(name, &body).await.status.is_success());
        }
        for (stream, prompt) in [(true, 600 + 2 * turn), (false, 601 + 2 * turn)] {
            let body = fleet.chat(stream, prompt, 12);
            let answer = proxy.post("/v1/chat/completions", &body).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            assert!(!answer.body.contains("opaque"), "{}", answer.body);
            let alone = send(fleet.address(0), post("/v1/chat/completions", body)).await;
            assert_eq!(tokens_of(&answer), tokens_of(&alone), "equal to one engine alone");
        }
        let text =
            json!({ "model": "m", "prompt": format!("{turn} tide ").repeat(300), "max_tokens": 9 });
        let answer = proxy.post("/v1/completions", &text.to_string()).await;
        let alone = send(fleet.address(0), post("/v1/completions", text.to_string())).await;
        assert_eq!(answer.json()["choices"][0]["text"], alone.json()["choices"][0]["text"]);
    }
    proxy.settles().await;
    for engine in 0..2 {
        let stats = fleet.stats(engine);
        assert_eq!((stats.transfers_in, stats.transfers_failed, stats.recomputes), (3, 0, 0));
        assert_eq!(stats.held, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_with_the_context_leg_has_no_generation_leg() {
    let p = Fake::start([], Act::Json(200, context("stop"))).await;
    let d = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let engines = [engine("p", p.url(), PREFILL), engine("d", d.url(), DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    let answer = proxy.post("/v1/chat/completions", &chat(false)).await;
    let mut expected: Value = serde_json::from_str(&chat_answer("all")).unwrap();
    expected["choices"][0]["finish_reason"] = json!("stop");
    assert_eq!(answer.json(), expected, "without what engines say to each other");
    let body = chat_with(true, &"other words ".repeat(300), "");
    let answer = proxy.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(tokens_of(&answer), "all");
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    assert!(d.sent().is_empty());
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_has_another_id_and_the_generation_gets_the_contexts_state() {
    let broken = Fake::start([], Act::Break(vec![])).await;
    let p = Fake::start([], Act::Json(200, context("not_finished"))).await;
    let d = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let engines = [
        engine("broken", broken.url(), PREFILL),
        engine("p", p.url(), PREFILL),
        engine("d", d.url(), DECODE),
    ];
    let top = format!("[probe]\nfailures_to_eject = 1000\n{SPLIT}");
    let proxy = Proxy::start(&top, &engines).await;
    for number in 0..12 {
        let body = chat_with(true, &format!("{number} words ").repeat(300), "");
        let answer = proxy.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.body, chat_chunks(3).concat());
    }
    assert!(!broken.sent().is_empty(), "no request was retried");
    let contexts = [broken.sent(), p.sent()].concat();
    let id = |sent: &Value| sent["disaggregated_params"]["disagg_request_id"].as_u64().unwrap();
    let ids: BTreeSet<u64> = contexts.iter().map(|sent| id(&sent.json())).collect();
    assert_eq!(ids.len(), contexts.len(), "an id is used once");
    assert!(ids.iter().all(|id| *id >= 1 << 40), "{ids:?}");
    let sent = d.sent()[0].json();
    assert_eq!(sent["disaggregated_params"]["request_type"], "generation_only");
    assert_eq!(sent["disaggregated_params"]["encoded_opaque_state"], "c3RhdGU=");
    assert_eq!(sent["prompt_token_ids"], json!([1, 2, 3]));
    assert_eq!((&sent["stream"], &sent["max_tokens"]), (&json!(true), &json!(16)));
    proxy.settles().await;
}
