//! Engine families without hand-offs: probed at the lowest cost, sent colocated
//! requests by cost, and never flipped.

use tokio::task::JoinSet;

use crate::client::{post, send};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::proxy::{Engine, Proxy, chat};

const OFTEN: &str = "[probe]\ninterval_seconds = 0.03\nfailures_to_eject = 1\n";

fn named(name: &'static str, fake: &Fake, more: &'static str) -> Engine {
    Engine { name, url: fake.url(), more }
}

async fn answering() -> Fake {
    Fake::start([], Act::Json(200, chat_answer("hello"))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_engine_kind_is_probed_at_its_own_path() {
    for (more, has, lacks) in [
        ("engine = \"vllm\"", "/health", "/ready"),
        ("engine = \"sglang\"", "/ready", "/version"),
        ("engine = \"trtllm\"", "/health", "/ready"),
        ("engine = \"tgi\"", "/health", "/version"),
        ("engine = \"llamacpp\"", "/health", "/ready"),
        ("engine = \"ollama\"", "/api/version", "/health"),
        ("engine = \"plain\"", "/v1/models", "/health"),
    ] {
        let fake = answering().await;
        fake.set_answer(lacks, 404, "");
        if has != "/v1/models" {
            fake.set_answer(has, 200, "{}");
        }
        let proxy = Proxy::start(OFTEN, &[named("a", &fake, more)]).await;
        proxy.shows("a", |backend| backend["health"] == "up").await;
        let list = "{\"object\":\"list\",\"data\":[{\"id\":\"m\"}]}";
        fake.set_answer(has, 503, "{\"error\":{\"message\":\"Loading model\"}}");
        proxy.shows("a", |backend| backend["health"] == "down").await;
        fake.set_answer(has, 200, if has == "/v1/models" { list } else { "{}" });
        proxy.shows("a", |backend| backend["health"] == "up").await;
        assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200, "{more}");
        assert!(fake.sent().iter().all(|sent| sent.path == "/v1/chat/completions"), "{more}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_sglang_without_ready_is_probed_at_health() {
    let fake = answering().await;
    let proxy = Proxy::start(OFTEN, &[named("a", &fake, "engine = \"sglang\"")]).await;
    proxy.shows("a", |backend| backend["health"] == "up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_read_from_each_engine_kind() {
    for (more, path, body, version) in [
        ("engine = \"tgi\"", "/info", r#"{"version":"3.3.6"}"#, "3.3.6"),
        ("engine = \"llamacpp\"", "/props", r#"{"build_info":"b6800-1a2b"}"#, "b6800-1a2b"),
        ("engine = \"ollama\"", "/api/version", r#"{"version":"0.12.3"}"#, "0.12.3"),
    ] {
        let fake = answering().await;
        fake.set_answer(path, 200, body);
        let proxy = Proxy::start("", &[named("a", &fake, more)]).await;
        let shown = proxy.backend("a").await;
        assert_eq!(shown["version"], version, "{shown}");
        assert_eq!(shown["allowed"], serde_json::json!(["mixed"]), "it is never flipped");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ollama_models_are_found_without_their_tag() {
    let fake = answering().await;
    fake.set_answer("/api/version", 200, "{}");
    fake.set_model("llama3:latest", 8192);
    let proxy = Proxy::start("", &[named("a", &fake, "engine = \"ollama\"")]).await;
    for model in ["llama3:latest", "llama3"] {
        let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"x"}}]}}"#);
        assert_eq!(proxy.post("/v1/chat/completions", &body).await.status, 200, "{model}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn llama_cpps_timings_are_its_usage() {
    let mut chunks = chat_chunks(2);
    let end = chunks.len() - 2;
    chunks[end] = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\
        \"timings\":{\"cache_n\":3,\"prompt_n\":6,\"predicted_n\":7}}\n\n"
        .to_owned();
    let fake = Fake::start([], Act::Chunks(chunks)).await;
    let proxy = Proxy::start("", &[named("a", &fake, "engine = \"llamacpp\"")]).await;
    assert_eq!(proxy.post("/v1/chat/completions", &chat(true)).await.status, 200);
    proxy.settles().await;
    assert_eq!(proxy.tokens().await, (9.0, 7.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovered_engine_is_ramped_up_by_slow_start() {
    let [a, b] = [
        Fake::start([], Act::Chunks(chat_chunks(600))).await,
        Fake::start([], Act::Chunks(chat_chunks(600))).await,
    ];
    let top =
        "[probe]\ninterval_seconds = 0.03\nfailures_to_eject = 1\nslow_return_seconds = 1.5\n";
    let engines = [
        named("a", &a, "engine = \"tgi\"\nstreams_max = 24"),
        named("b", &b, "engine = \"tgi\"\nstreams_max = 24"),
    ];
    let proxy = Proxy::start(top, &engines).await;
    b.set_answer("/health", 503, "");
    proxy.shows("b", |backend| backend["health"] == "down").await;
    let mut load = JoinSet::new();
    let mut begin = |n: usize| {
        for _ in 0..n {
            let data = proxy.data;
            load.spawn(async move { send(data, post("/v1/chat/completions", chat(true))).await });
        }
    };
    begin(20);
    proxy.shows("a", |backend| backend["streams"] == 20).await;
    b.set_answer("/health", 200, "");
    proxy.shows("b", |backend| backend["health"] == "up").await;
    // More than the other engine's capacity: requests that b cannot take yet wait.
    begin(20);
    proxy.shows("a", |backend| backend["streams"] == 24).await;
    let first = proxy.backend("b").await["streams"].as_u64().unwrap();
    assert!((1..=6).contains(&first), "slow start begins at a tenth of the peer's load: {first}");
    assert!(proxy.waiting() > 0);
    proxy.shows("b", |backend| backend["streams"].as_u64() >= Some(12)).await;
    while let Some(answer) = load.join_next().await {
        assert!(answer.unwrap().body.ends_with("data: [DONE]\n\n"));
    }
    proxy.settles().await;
}
