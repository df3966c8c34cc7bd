//! Concurrent prompts per engine, and the estimate of its prefix cache.

use crate::client::{leave_later, post, until};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::proxy::{Engine, Proxy, chat_with, plain};

const CHAT: &str = "/v1/chat/completions";

/// An engine with a configured step time of 44 ms.
const SLOW_STEPS: &str = "engine = \"plain\"\n[backends.prefill_prior]\nbase_seconds = 0.044";

/// Asserts that of `requests` requests with prompts of `words` words, `expected` reach the engine
/// before the first answer.
async fn reach(requests: usize, words: usize, expected: usize) {
    let fake = Fake::start([], Act::Silent).await;
    let engine = Engine { name: "a", url: fake.url(), more: SLOW_STEPS };
    let proxy = Proxy::start("", &[engine]).await;
    let body = chat_with(true, &"word ".repeat(words), "");
    let clients: Vec<_> =
        (0..requests).map(|_| leave_later(proxy.data, post(CHAT, body.clone()))).collect();
    let (sent, waiting) = (|| fake.sent().len(), requests - expected);
    until("some reach the engine and the others wait", || {
        sent() == expected && proxy.waiting() == waiting
    })
    .await;
    for client in clients {
        client.abort();
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn short_prompts_are_batched_up_to_one_engine_step() {
    reach(48, 5, 48).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_prompts_are_placed_one_at_a_time_per_engine() {
    reach(4, 2000, 1).await;
}

/// Returns an answer to a prompt of 500 tokens of which this number was cached.
fn cached(tokens: u32) -> String {
    let usage = "\"usage\":{\"prompt_tokens\":9,";
    let reported = format!(
        "\"usage\":{{\"prompt_tokens\":500,\"prompt_tokens_details\":{{\"cached_tokens\":{tokens}}},"
    );
    let answer = chat_answer("x").replace(usage, &reported);
    assert!(answer.contains("cached_tokens"));
    answer
}

fn share(backend: &serde_json::Value) -> f64 {
    backend["prefix_hit_share"].as_f64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prefix_hit_share_follows_the_reported_cache_misses_and_hits() {
    let misses = (0..30).map(|_| Act::Json(200, cached(0)));
    let fake = Fake::start(misses, Act::Json(200, cached(500))).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let body = chat_with(false, &"word ".repeat(400), "");
    assert_eq!(share(&proxy.backend("a").await), 1.0);
    for _ in 0..30 {
        assert_eq!(proxy.post(CHAT, &body).await.status, 200);
    }
    let shown = proxy.shows("a", |backend| share(backend) < 0.2).await;
    assert_eq!(shown["prefix_hit_source"], "usage");
    for _ in 0..40 {
        assert_eq!(proxy.post(CHAT, &body).await.status, 200);
    }
    proxy.shows("a", |backend| share(backend) > 0.8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_usage_reports_is_not_counted_as_cache_misses() {
    let fake = Fake::start([], Act::Chunks(chat_chunks(2))).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let body = chat_with(true, &"word ".repeat(400), "");
    for _ in 0..30 {
        assert_eq!(proxy.post(CHAT, &body).await.status, 200);
    }
    assert_ne!(proxy.backend("a").await["prefix_hit_source"], "usage");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kv_capacity_is_the_settings_or_the_reported_one() {
    let page = "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"1000\"} 1\n";
    let (reporting, configured) = (
        Fake::start([], Act::Json(200, chat_answer("x"))).await,
        Fake::start([], Act::Json(200, chat_answer("x"))).await,
    );
    reporting.set_metrics(page);
    configured.set_metrics(page);
    let set = "engine = \"plain\"\nkv_capacity_tokens = 777";
    let engines = [
        plain("reporting", &reporting),
        Engine { name: "configured", url: configured.url(), more: set },
    ];
    let proxy = Proxy::start("[signals]\nscrape_seconds = 0.02\n", &engines).await;
    proxy.shows("reporting", |backend| backend["kv_capacity_tokens"] == 16_000).await;
    until("the other engine was queried too", || configured.count_of("/metrics") > 1).await;
    assert_eq!(proxy.backend("configured").await["kv_capacity_tokens"], 777);
}
