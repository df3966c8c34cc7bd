//! A request split over two engines: the requests of both legs, and the actual transfer of the KV
//! cache.

use tidegate_emulator::EmulatorConfig;
use tidegate_sim::Profile;
use tidegate_types::Seconds;

use crate::client::{post, send};
use crate::fake::{Act, Fake, chat_chunks, prefill_answer};
use crate::fleet::{Emulated, tokens_of};
use crate::proxy::{DECODE, PREFILL, Proxy, SPLIT, chat, chat_with, vllm};

#[tokio::test(flavor = "multi_thread")]
async fn both_legs_keep_the_clients_headers_and_unknown_fields() {
    let p = Fake::start([], Act::Json(200, prefill_answer())).await;
    let d = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let engines = [vllm("p", p.url(), PREFILL), vllm("d", d.url(), DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    let body =
        chat_with(true, &"word ".repeat(400), ",\"x_unknown\":{\"a\":1e2},\"temperature\":0");
    let mut request = post("/v1/chat/completions", body.clone());
    request.headers_mut().insert("authorization", "Bearer client-key".parse().unwrap());
    request.headers_mut().insert("x-custom", "kept".parse().unwrap());
    let answer = send(proxy.data, request).await;
    assert_eq!(answer.body, chat_chunks(3).concat());
    let (prefill, decode) = (&p.sent()[0], &d.sent()[0]);
    for leg in [prefill, decode] {
        assert_eq!(leg.headers["authorization"], "Bearer client-key");
        assert_eq!(leg.headers["x-custom"], "kept");
        assert!(String::from_utf8_lossy(&leg.body).contains("\"x_unknown\":{\"a\":1e2}"));
    }
    assert_eq!(prefill.headers["x-request-id"], decode.headers["x-request-id"]);
    let (prefill, decode) = (prefill.json(), decode.json());
    assert_eq!(prefill["max_tokens"], 1);
    assert_eq!(prefill["stream"], false);
    assert_eq!(prefill["kv_transfer_params"]["do_remote_decode"], true);
    assert_eq!(decode["max_tokens"], 16);
    assert_eq!(decode["stream"], true);
    let handed: serde_json::Value = serde_json::from_str(&prefill_answer()).unwrap();
    assert_eq!(decode["kv_transfer_params"], handed["kv_transfer_params"]);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_prefill_is_retried_and_a_dead_decode_gets_a_fresh_prefill() {
    let p = Fake::start([Act::Break(vec![])], Act::Json(200, prefill_answer())).await;
    let d = Fake::start([Act::Drop], Act::Chunks(chat_chunks(3))).await;
    let top = "[retry]\nattempts = 4\n[placement]\nspill = false\n";
    let engines = [vllm("p", p.url(), PREFILL), vllm("d", d.url(), DECODE)];
    let proxy = Proxy::start(top, &engines).await;
    let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
    assert_eq!(answer.body, chat_chunks(3).concat());
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_error_of_the_prefill_leg_is_forwarded() {
    let refused =
        "{\"error\":{\"message\":\"too long\",\"type\":\"BadRequestError\",\"code\":400}}";
    let p = Fake::start([], Act::Json(400, refused.into())).await;
    let d = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let engines = [vllm("p", p.url(), PREFILL), vllm("d", d.url(), DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (400, refused));
    assert!(d.sent().is_empty());
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_split_run_colocated() {
    let p = Fake::start([], Act::Json(200, prefill_answer())).await;
    let d = Fake::start([], Act::Json(200, crate::fake::chat_answer("whole"))).await;
    let engines = [vllm("p", p.url(), PREFILL), vllm("d", d.url(), DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    let long = "word ".repeat(400);
    for more in [",\"n\":2", ",\"prompt_logprobs\":1"] {
        let body = chat_with(false, &long, more);
        let answer = proxy.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let sent = [p.sent(), d.sent()].concat();
        assert_eq!(sent.last().unwrap().body, body, "{more}: byte for byte");
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_never_receives_a_hand_off_of_its_own_blocks() {
    // Only the prefill engine is left to decode.
    let p = Fake::start([Act::Json(200, prefill_answer())], Act::Chunks(chat_chunks(3))).await;
    let refusing = crate::proxy::RefusingAddress::new();
    let more = "engine = \"vllm\"\nconnector = \"nixl\"\nmodels = [\"m\"]\nrole = \"decode\"\npin = true\ngroup = \"g\"";
    let prefill = "engine = \"vllm\"\nconnector = \"nixl\"\nmodels = [\"m\"]\nrole = \"prefill\"\npin = true\ngroup = \"g\"";
    let proxy =
        Proxy::start(SPLIT, &[vllm("p", p.url(), prefill), vllm("d", refusing.url(), more)]).await;
    let body = chat(true);
    let answer = proxy.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let sent = p.sent();
    assert_eq!(sent.last().unwrap().body, body, "the client's own body, without a hand-off");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hand_off_transfers_kv() {
    let fleet = Emulated::start(2).await;
    let engines = [vllm("p", fleet.url(0), PREFILL), vllm("d", fleet.url(1), DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    for stream in [true, false] {
        let body = fleet.chat(stream, 600, 12);
        let answer = proxy.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let alone = send(fleet.address(0), post("/v1/chat/completions", body)).await;
        assert_eq!(tokens_of(&answer), tokens_of(&alone), "equal to one engine alone");
    }
    let (p, d) = (fleet.stats(0), fleet.stats(1));
    assert_eq!(d.transfers_in, 2, "two hand-offs");
    assert!(d.bytes_in > 0);
    assert_eq!((d.recomputes, d.transfers_failed), (0, 0), "none was a silent recompute");
    assert_eq!(p.leases_expired, 0);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hand_off_cost_of_a_group_is_learned_from_streamed_answers() {
    let slow = Profile { t_handoff: Seconds(0.1), ..Profile::named("fast").unwrap() };
    let config = EmulatorConfig { count: 2, ..EmulatorConfig::default() };
    let fleet = Emulated::with_profile(config, slow).await;
    let engines = [vllm("p", fleet.url(0), PREFILL), vllm("d", fleet.url(1), DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    let cost = |backend: &serde_json::Value| {
        let costs = &backend["costs"];
        let of = |name: &str| costs[name].as_f64().unwrap();
        of("hand_off_base_seconds") + of("hand_off_token_seconds") * 1000.0
    };
    // The default, 3 ms and 8 µs a token, before the first hand-off.
    proxy.shows("p", |backend| (cost(backend) - 0.011).abs() < 1e-6).await;
    for request in 0..12 {
        let body = fleet.chat(true, 400 + request * 50, 4);
        assert_eq!(proxy.post("/v1/chat/completions", &body).await.status, 200);
    }
    for name in ["p", "d"] {
        proxy.shows(name, |backend| cost(backend) > 0.05).await;
    }
    proxy.settles().await;
}
