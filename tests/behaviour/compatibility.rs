//! Engines that differ from the settings or from each other: the mismatch is reported before they serve,
//! and requests are not split over them while it lasts.

use crate::client::{get, send};
use crate::fake::{Act, Fake, chat_answer, prefill_answer};
use crate::proxy::{DECODE, Engine, PREFILL, Proxy, SPLIT, chat, vllm};

const STRICT: &str = "[probe]\nstrict_start = true\n";
const OFTEN: &str =
    "[probe]\ninterval_seconds = 0.03\nfailures_to_eject = 1\nslow_return_seconds = 0\n";

async fn fake(version: &str) -> Fake {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    fake.set_version(version);
    fake
}

/// A prefill engine and two decode engines of one version.
async fn three() -> ([Fake; 3], Proxy) {
    let fakes = [fake("0.32.0").await, fake("0.32.0").await, fake("0.32.0").await];
    let engines = [
        vllm("p", fakes[0].url(), PREFILL),
        vllm("a", fakes[1].url(), DECODE),
        vllm("b", fakes[2].url(), DECODE),
    ];
    let proxy = Proxy::start(&format!("{SPLIT}{OFTEN}"), &engines).await;
    (fakes, proxy)
}

/// Stops an engine and restarts it with other facts.
async fn restart(proxy: &Proxy, name: &str, fake: &Fake, change: impl FnOnce(&Fake)) {
    fake.set_answer("/health", 503, "");
    proxy.shows(name, |backend| backend["health"] == "down").await;
    change(fake);
    fake.set_answer("/health", 200, "");
    proxy.shows(name, |backend| backend["health"] == "up" || backend["health"] == "unfit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_verification_refuses_to_start_on_a_mismatch() {
    let (a, b) = (fake("0.32.0+cpu").await, fake("0.33.0").await);
    let of = |fake: &Fake, name, more| Engine { name, url: fake.url(), more };
    let vllm = "engine = \"vllm\"\nversion = \"0.33.0\"";
    let text = Proxy::refusal(STRICT, &[of(&a, "a", vllm), of(&b, "b", vllm)]);
    let line = "backend a: version: the settings have 0.33.0, the engine reports 0.32.0+cpu";
    assert!(text.contains(line) && !text.contains("backend b"), "{text}");

    let named = "engine = \"vllm\"\nmodels = [\"other\"]";
    let text = Proxy::refusal(STRICT, &[of(&a, "a", named)]);
    assert!(
        text.contains("backend a: models: the settings name other, the engine serves m"),
        "{text}"
    );

    let group = "engine = \"vllm\"\nconnector = \"nixl\"\ngroup = \"one\"";
    let text = Proxy::refusal(STRICT, &[of(&a, "a", group), of(&b, "b", group)]);
    let line = "backend b: group: its version is 0.33.0, that of a is 0.32.0+cpu";
    assert!(text.contains(line), "{text}");

    let sglang = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let info = r#"{"version":"0.5.23","internal_states":[{"disaggregation_mode":"decode"}]}"#;
    sglang.set_answer("/server_info", 200, info);
    let prefill =
        "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"prefill\"\ngroup = \"g\"";
    let decode = "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"decode\"\ngroup = \"g\"";
    let other = fake("").await;
    let text = Proxy::refusal(STRICT, &[of(&sglang, "s", prefill), of(&other, "t", decode)]);
    let line = "backend s: mode: it must be prefill, the engine's disaggregation_mode is decode";
    assert!(text.contains(line) && !text.contains("backend t"), "{text}");
    let text = Proxy::refusal(STRICT, &[of(&sglang, "s", "engine = \"sglang\"")]);
    assert!(text.contains("it must be null"), "an engine that runs no colocated requests: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_starts_without_a_mismatched_engine() {
    let (wrong, right) = (fake("0.32.0").await, fake("0.33.0").await);
    let prefill = "engine = \"vllm\"\nconnector = \"nixl\"\nrole = \"prefill\"\npin = true\nversion = \"0.33.0\"";
    let decode = "engine = \"vllm\"\nconnector = \"nixl\"\nrole = \"decode\"\npin = true\nversion = \"0.33.0\"";
    let engines = [vllm("p", wrong.url(), prefill), vllm("d", right.url(), decode)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    let shown = proxy.backend("p").await;
    assert_eq!(shown["version"], "0.32.0");
    assert!(shown["misfits"][0].as_str().unwrap().contains("0.33.0"), "{shown}");
    let sent = [wrong.sent(), right.sent()].concat();
    assert!(
        sent.iter().all(|sent| sent.json().get("kv_transfer_params").is_none()),
        "a request was split"
    );
    let page = send(proxy.admin, get("/metrics")).await.body;
    assert!(page.contains("tidegate_backend_misfit{backend=\"p\",reason=\"version\"} 1"), "{page}");
    assert!(page.contains("tidegate_backend_misfit{backend=\"d\",reason=\"version\"} 0"), "{page}");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_split_only_between_engines_of_the_same_version() {
    let (fakes, proxy) = three().await;
    for (changed, want) in [
        ((|fake: &Fake| fake.set_version("0.33.0")) as fn(&Fake), "version"),
        (|fake| fake.set_model("m", 8192), "max_model_len"),
    ] {
        restart(&proxy, "a", &fakes[1], changed).await;
        let shown = proxy.backend("a").await;
        assert!(shown["misfits"][0].as_str().unwrap().contains(want), "{shown}");
        assert_ne!(shown["group"], proxy.backend("p").await["group"]);
        assert_eq!(proxy.backend("b").await["group"], proxy.backend("p").await["group"]);
        let handed = |fake: &Fake| {
            fake.sent()
                .iter()
                .filter(|sent| sent.json().get("kv_transfer_params").is_some())
                .count()
        };
        let before = handed(&fakes[1]);
        for _ in 0..12 {
            assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
        }
        assert_eq!(handed(&fakes[1]), before, "it was handed what another version computed");
        restart(&proxy, "a", &fakes[1], |fake| {
            fake.set_version("0.32.0");
            fake.set_model("m", 4096);
        })
        .await;
        let shown = proxy.backend("a").await;
        assert_eq!(shown["misfits"].as_array().map(Vec::len), Some(0), "{shown}");
        assert_eq!(shown["group"], proxy.backend("p").await["group"]);
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_engine_with_another_model_serves_that_model_only() {
    let (fakes, proxy) = three().await;
    restart(&proxy, "b", &fakes[2], |fake| fake.set_model("other", 4096)).await;
    let before = fakes[2].sent().len();
    for _ in 0..8 {
        assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    }
    assert_eq!(fakes[2].sent().len(), before);
    let other = chat(false).replace("\"m\"", "\"other\"");
    assert_eq!(proxy.post("/v1/chat/completions", &other).await.status, 200);
    assert_eq!(fakes[2].sent().len(), before + 1);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_fixed_sglang_in_another_mode_is_out_of_service() {
    let info = |mode: &str| {
        format!(
            "{{\"version\":\"0.5.23\",\"internal_states\":[{{\"disaggregation_mode\":\"{mode}\"}}]}}"
        )
    };
    let mut engines = Vec::new();
    let mut fakes = Vec::new();
    for (name, more) in [
        ("p", "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"prefill\""),
        ("d", "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"decode\""),
        ("e", "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"decode\""),
    ] {
        let fake = Fake::start([], Act::Json(200, prefill_answer())).await;
        fake.set_answer("/server_info", 200, &info(if name == "p" { "prefill" } else { "decode" }));
        engines.push(vllm(name, fake.url(), more));
        fakes.push(fake);
    }
    let proxy = Proxy::start(OFTEN, &engines).await;
    restart(&proxy, "d", &fakes[1], |fake| fake.set_answer("/server_info", 200, &info("prefill")))
        .await;
    let shown = proxy.backend("d").await;
    assert_eq!(shown["health"], "unfit", "{shown}");
    for _ in 0..8 {
        assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    }
    assert!(fakes[1].sent().is_empty() && fakes[2].sent().len() == 8);
    restart(&proxy, "d", &fakes[1], |fake| fake.set_answer("/server_info", 200, &info("decode")))
        .await;
    assert_eq!(proxy.backend("d").await["health"], "up");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_reported_facts_is_not_checked() {
    let (a, b) = (Fake::start([], Act::Json(200, prefill_answer())).await, fake("0.33.0").await);
    let versioned = "engine = \"vllm\"\nconnector = \"nixl\"\nrole = \"prefill\"\npin = true\nversion = \"0.33.0\"";
    let also = "engine = \"vllm\"\nconnector = \"nixl\"\nrole = \"decode\"\npin = true\nversion = \"0.33.0\"";
    let proxy =
        Proxy::start(SPLIT, &[vllm("p", a.url(), versioned), vllm("d", b.url(), also)]).await;
    assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    assert!(b.sent()[0].json().get("kv_transfer_params").is_some());
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_switchable_sglang_keeps_its_new_mode() {
    let info =
        |mode: &str| format!("{{\"internal_states\":[{{\"disaggregation_mode\":\"{mode}\"}}]}}");
    let switchable =
        "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"decode\"\nrole_switch = true";
    let mut engines = Vec::new();
    let mut fakes = Vec::new();
    for (name, mode) in [("p", "prefill"), ("d", "decode"), ("e", "decode")] {
        let fake = Fake::start([], Act::Json(200, prefill_answer())).await;
        fake.set_answer("/server_info", 200, &info(mode));
        // All three are configured for decode; each reports its own role.
        engines.push(vllm(name, fake.url(), switchable));
        fakes.push(fake);
    }
    // Otherwise the planner would switch one of the three engines that appear to decode.
    let top = format!("[planner]\nenabled = false\n{OFTEN}");
    let proxy = Proxy::start(&top, &engines).await;
    proxy.shows("p", |backend| backend["role"] == "prefill" && backend["health"] == "up").await;
    restart(&proxy, "e", &fakes[2], |fake| fake.set_answer("/server_info", 200, &info("prefill")))
        .await;
    proxy.shows("e", |backend| backend["role"] == "prefill" && backend["health"] == "up").await;
    for _ in 0..4 {
        assert_eq!(proxy.post("/v1/chat/completions", &chat(false)).await.status, 200);
    }
    assert_eq!(fakes[1].sent().len(), 4, "the one that decodes decodes all");
    let history = proxy.admin("/v1/plan/history").await;
    assert!(history.to_string().contains("adopted"), "{history}");
    proxy.settles().await;
}
