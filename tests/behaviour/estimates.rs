//! Estimated prompts: the counts of the engine's `/tokenize` correct the estimate of a model without a
//! tokenizer, outside of the request path.

use serde_json::{Value, json};
use std::time::Duration;

use crate::client::{get, post, send, within};
use crate::fake::{Act, Fake, chat_chunks};
use crate::fleet::Emulated;
use crate::proxy::{FREE, Proxy, vllm};

/// Longer than two of the intervals at which prompts are taken.
const TWO_INTERVALS: Duration = Duration::from_millis(2500);

/// Sends a chat and returns its estimated prompt tokens.
async fn estimated(proxy: &Proxy, content: &str) -> f64 {
    let body = json!({
        "model": "m", "max_tokens": 1, "stream": true,
        "messages": [{"role": "user", "content": content}],
    });
    let answer = send(proxy.data, post("/v1/chat/completions", body.to_string())).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
    within(async {
        loop {
            let ended = send(proxy.admin, get(&format!("/v1/requests/{id}"))).await;
            let ended: Value = serde_json::from_str(&ended.body).unwrap_or_default();
            if let Some(tokens) = ended["prompt_tokens"].as_f64() {
                assert_eq!(ended["prompt_exact"], false);
                return tokens;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// Sends chats until `/tokenize` has been called this often.
async fn until_counted(proxy: &Proxy, fake: &Fake, content: &str, times: usize) {
    within(async {
        while fake.count_of("/tokenize") < times {
            estimated(proxy, content).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_counts_correct_the_estimate_and_end_the_samples() {
    let fake = Fake::start([], Act::Chunks(chat_chunks(1))).await;
    // No answer has `usage`: only these counts can change the estimate.
    fake.set_answer("/tokenize", 200, &json!({"count": 2000, "tokens": []}).to_string());
    let proxy = Proxy::start("", &[vllm("a", fake.url(), FREE)]).await;
    let content = "the tide turns twice a day ".repeat(100);
    let first = estimated(&proxy, &content).await;
    assert!(first < 1000.0, "a word is about a token: {first}");
    until_counted(&proxy, &fake, &content, 4).await;
    tokio::time::sleep(TWO_INTERVALS).await;
    let corrected = estimated(&proxy, &content).await;
    assert!((corrected - 2000.0).abs() <= 40.0, "{corrected}");
    let half = estimated(&proxy, &content[..content.len() / 2]).await;
    assert!((half - 1000.0).abs() <= 40.0, "{half}");
    tokio::time::sleep(TWO_INTERVALS).await;
    estimated(&proxy, &content).await;
    tokio::time::sleep(TWO_INTERVALS).await;
    assert_eq!(fake.count_of("/tokenize"), 4, "the factor is steady: no further prompt is counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_with_another_ratio_is_learned() {
    let engines = Emulated::start(1).await;
    let proxy = Proxy::start("", &[vllm("a", engines.url(0), FREE)]).await;
    // The emulator counts four bytes as a token; of a usual tokenizer a digit is about one.
    let content = "0123456789".repeat(160);
    let counted = (content.len() + 25) as f64 / 4.0;
    let first = estimated(&proxy, &content).await;
    assert!(first > 2.0 * counted, "{first}");
    within(async {
        loop {
            let now = estimated(&proxy, &content).await;
            if (now / counted - 1.0).abs() < 0.05 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_a_count_is_not_queried_again() {
    let fake = Fake::start([], Act::Chunks(chat_chunks(1))).await;
    fake.set_answer("/tokenize", 404, "");
    let proxy = Proxy::start("", &[vllm("a", fake.url(), FREE)]).await;
    let first = estimated(&proxy, "high water").await;
    until_counted(&proxy, &fake, "high water", 1).await;
    tokio::time::sleep(TWO_INTERVALS).await;
    assert_eq!(estimated(&proxy, "high water").await, first);
    tokio::time::sleep(TWO_INTERVALS).await;
    assert_eq!(fake.count_of("/tokenize"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_prompt_is_counted_if_the_settings_forbid_it() {
    let fake = Fake::start([], Act::Chunks(chat_chunks(1))).await;
    fake.set_answer("/tokenize", 200, &json!({"count": 2000}).to_string());
    let settings = "[probe]\ncalibrate_estimates = false\n";
    let proxy = Proxy::start(settings, &[vllm("a", fake.url(), FREE)]).await;
    estimated(&proxy, "low water").await;
    tokio::time::sleep(TWO_INTERVALS).await;
    estimated(&proxy, "low water").await;
    tokio::time::sleep(TWO_INTERVALS).await;
    assert_eq!(fake.count_of("/tokenize"), 0);
}
