//! Engine metrics are exported, and conditions that answers do not show raise alerts.

use crate::client::{get, send, until};
use crate::fake::{Act, Fake, chat_answer, chat_chunks, prefill_answer};
use crate::proxy::{DECODE, PREFILL, Proxy, SPLIT, chat, chat_with, plain, vllm};

const QUICK: &str = "[signals]\nscrape_seconds = 0.02\n";

/// Returns a backend's active alerts as JSON.
async fn alerts(proxy: &Proxy, backend: usize) -> String {
    proxy.admin("/v1/fleet").await["backends"][backend]["alerts"].to_string()
}

async fn until_alerts(proxy: &Proxy, backend: usize, expected: &str) {
    for _ in 0..1000 {
        if alerts(proxy, backend).await == expected {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("expected {expected}: {}", alerts(proxy, backend).await);
}

async fn page(proxy: &Proxy) -> String {
    send(proxy.admin, get("/metrics")).await.body
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engines_metrics_are_exported_and_its_alert_is_raised_and_cleared() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    fake.set_metrics(
        "vllm:kv_cache_usage_perc{engine=\"0\"} 0.99\nvllm:num_preemptions_total{engine=\"0\"} 4\n\
         vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"10\"} 1\n",
    );
    let proxy = Proxy::start(QUICK, &[plain("a", &fake)]).await;
    until_alerts(&proxy, 0, "[\"kv_full\"]").await;
    let shown = page(&proxy).await;
    for line in [
        "tidegate_engine_kv_usage_ratio{backend=\"a\"} 0.99",
        "tidegate_engine_kv_capacity_tokens{backend=\"a\"} 160",
        "tidegate_engine_preemptions_total{backend=\"a\"} 4",
        "tidegate_engine_alert{backend=\"a\",reason=\"kv_full\"} 1",
        "tidegate_engine_alert{backend=\"a\",reason=\"preempting\"} 0",
    ] {
        assert!(shown.contains(line), "{line} is not in {shown}");
    }
    // The alert is a notice: requests are still sent to the backend.
    assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    fake.set_metrics("vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\nvllm:prompt_tokens_by_source_total{source=\"local_compute\"} 1\n");
    until_alerts(&proxy, 0, "[]").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hand_offs_without_kv_raise_an_alert_although_answers_are_correct() {
    // Sequential legs, and concurrent legs.
    for connector in ["nixl", "offloading"] {
        hand_off_without_kv(connector).await;
    }
}

async fn hand_off_without_kv(connector: &str) {
    let prefill = Fake::start([], Act::Json(200, prefill_answer())).await;
    let decode = Fake::start([], Act::Chunks(chat_chunks(2))).await;
    decode.set_metrics("vllm:prompt_tokens_by_source_total{source=\"external_kv_transfer\"} 0\n");
    let top = format!("{SPLIT}{QUICK}");
    let with = |more: &str| -> &'static str {
        more.replace("\"nixl\"", &format!("\"{connector}\"")).leak()
    };
    let engines = [vllm("p", prefill.url(), with(PREFILL)), vllm("d", decode.url(), with(DECODE))];
    let proxy = Proxy::start(&top, &engines).await;
    let mut requests = 0;
    while alerts(&proxy, 1).await != "[\"recomputes\"]" {
        // A unique prompt each: a cached prompt does not justify a hand-off.
        let body = chat_with(true, &format!("{requests} ").repeat(400), "");
        assert_eq!(proxy.post("/v1/chat/completions", &body).await.status, 200);
        requests += 1;
        assert!(requests < 1000, "no alert was raised");
    }
    assert_eq!(alerts(&proxy, 0).await, "[]");
    decode.set_metrics("vllm:prompt_tokens_by_source_total{source=\"external_kv_transfer\"} 512\n");
    until_alerts(&proxy, 1, "[]").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orca_load_report_in_the_headers_is_read() {
    let fake = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let proxy = Proxy::start("[signals]\nscrape_seconds = 0\n", &[plain("a", &fake)]).await;
    assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    until("settled", || proxy.is_settled()).await;
    let shown = page(&proxy).await;
    assert!(shown.contains("tidegate_engine_waiting_requests{backend=\"a\"} 3"), "{shown}");
}

/// Returns a stream as vLLM sends it with `continuous_usage_stats`: bundled tokens, and usage in
/// every chunk.
fn counted_chunks() -> Vec<String> {
    let mut chunks = chat_chunks(2);
    let counts = [0, 3, 7, 8];
    for (chunk, count) in chunks.iter_mut().zip(counts) {
        let usage = format!(
            "}}],\"usage\":{{\"prompt_tokens\":9,\"total_tokens\":17,\"completion_tokens\":{count}}}}}\n\n"
        );
        *chunk = chunk.replace("}]}\n\n", &usage);
    }
    chunks.insert(4, last_usage(9));
    chunks
}

fn last_usage(cached: u32) -> String {
    format!(
        "data: {{\"id\":\"c\",\"choices\":[],\"usage\":{{\"prompt_tokens\":9,\"completion_tokens\":8,\
         \"prompt_tokens_details\":{{\"cached_tokens\":{cached}}}}}}}\n\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_counted_exactly_and_the_client_receives_only_the_requested_usage() {
    let fake = Fake::start([], Act::Chunks(counted_chunks())).await;
    let engines = [vllm("a", fake.url(), "engine = \"vllm\"")];
    let proxy = Proxy::start("[signals]\nexact_counts = true\n", &engines).await;
    let mut final_usage = chat_chunks(2);
    final_usage.insert(4, last_usage(9));
    let both = ",\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true}";
    let rows = [
        ("", chat_chunks(2)),
        (",\"stream_options\":{\"include_usage\":true}", final_usage),
        (both, counted_chunks()),
    ];
    for (options, expected) in rows {
        let body = chat_with(true, "word", options);
        let answer = proxy.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.body, expected.concat(), "{options}");
        let sent = fake.sent().last().unwrap().json();
        let options = serde_json::json!({"include_usage": true, "continuous_usage_stats": true});
        assert_eq!(sent["stream_options"], options);
    }
    proxy.settles().await;
    let fleet = proxy.admin("/v1/fleet").await;
    assert_eq!(fleet["backends"][0]["emitted_tokens"], 3 * 8, "not one a chunk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disaggregated_answer_reports_the_prefill_engines_cached_tokens() {
    let prefill_answer = prefill_answer().replace(
        "\"completion_tokens\":3",
        "\"completion_tokens\":1,\"prompt_tokens_details\":{\"cached_tokens\":4}",
    );
    let prefill = Fake::start([], Act::Json(200, prefill_answer)).await;
    let mut chunks = chat_chunks(2);
    chunks.insert(4, last_usage(9));
    let whole = "{\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":8,\
         \"prompt_tokens_details\":{\"cached_tokens\":9}}}";
    let script = [Act::Chunks(chunks.clone()), Act::Json(200, whole.to_owned())];
    let decode = Fake::start(script, Act::Silent).await;
    let engines = [vllm("p", prefill.url(), PREFILL), vllm("d", decode.url(), DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    chunks[4] = last_usage(4);
    let options = ",\"stream_options\":{\"include_usage\":true}";
    let body = chat_with(true, &"word ".repeat(400), options);
    let answer = proxy.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.body, chunks.concat());
    let body = chat_with(false, &"other ".repeat(400), "");
    let answer = proxy.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.body, whole.replace("\"cached_tokens\":9", "\"cached_tokens\":4"));
    proxy.settles().await;
}
