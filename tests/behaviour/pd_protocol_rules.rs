//! Rules that follow from the engines' protocols (docs/spec/engine-protocols.md#proxy-rules) and
//! have no test in another module. The others: 1 and 9 in `settings/tests.rs` (launch flags,
//! groups), 5 in `retry.rs` and with each engine, 6 in `sglang.rs`, `connectors.rs`,
//! `trtllm_generation_first.rs`, 8 in `flips.rs` (instant) and `sglang.rs` (drain, call, verify),
//! 10 in `signals.rs`. 11 is the operator's responsibility.

use serde_json::Value;
use tidegate_emulator::{EmulatorConfig, VllmConnector};

use crate::client::{leave_later, post, until};
use crate::fake::{Act, Fake, chat_answer, chat_chunks, prefill_answer};
use crate::fleet::Emulated;
use crate::proxy::{DECODE, FREE, PREFILL, Proxy, SPLIT, chat, chat_with, vllm};

fn is_handed(sent: &Value) -> bool {
    sent["kv_transfer_params"]["do_remote_prefill"] == true
}

fn is_prefill(sent: &Value) -> bool {
    sent["kv_transfer_params"]["do_remote_decode"] == true
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_2_short_and_unsplittable_requests_run_colocated_on_a_decode_engine() {
    let p = Fake::start([], Act::Json(200, prefill_answer())).await;
    let d = Fake::start([], Act::Json(200, chat_answer("whole"))).await;
    let engines = [vllm("p", p.url(), PREFILL), vllm("d", d.url(), DECODE)];
    let proxy = Proxy::start("", &engines).await;
    let long = "word ".repeat(400);
    let text = |prompt: &str, more: &str| format!("{{\"model\":\"m\",\"prompt\":{prompt}{more}}}");
    let quoted = format!("\"{long}\"");
    let (chat, completions) = ("/v1/chat/completions", "/v1/completions");
    let rows = [
        (chat, chat_with(false, "short", "")),
        (chat, chat_with(false, &long, ",\"n\":2")),
        (chat, chat_with(false, &long, ",\"prompt_logprobs\":1")),
        (chat, chat_with(false, &long, ",\"use_beam_search\":true")),
        (chat, chat_with(false, &long, ",\"max_completion_tokens\":1")),
        (completions, text(&quoted, ",\"max_tokens\":1")),
        (completions, text(&quoted, ",\"best_of\":2")),
        (completions, text(&quoted, ",\"echo\":true,\"logprobs\":1")),
        (completions, text(&format!("[{quoted},{quoted}]"), "")),
    ];
    for (path, body) in rows {
        let before = p.sent().len() + d.sent().len();
        let answer = proxy.post(path, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let sent = [p.sent(), d.sent()].concat();
        assert_eq!(sent.len(), before + 1, "one leg: {body}");
        assert!(sent.iter().any(|sent| sent.body == body), "byte for byte: {body}");
    }
    assert!(d.sent().len() >= 8, "on the decode engine where the roles allow it");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_3_the_decode_engine_is_chosen_at_the_end_of_the_prefill() {
    let p = Fake::start([Act::Slow(200, prefill_answer())], Act::Silent).await;
    let a = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let b = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let engines =
        [vllm("p", p.url(), PREFILL), vllm("a", a.url(), DECODE), vllm("b", b.url(), FREE)];
    let proxy = Proxy::start(&format!("[planner]\nenabled = false\n{SPLIT}"), &engines).await;
    let role = async |name, role| {
        let answer = proxy.set_role(name, &format!("{{\"role\":\"{role}\",\"pin\":true}}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    };
    role("b", "draining").await;
    let body = chat(true);
    let request = proxy.post("/v1/chat/completions", &body);
    let flips = async {
        until("it prefills", || p.sent().len() == 1).await;
        assert!(a.sent().is_empty() && b.sent().is_empty());
        role("b", "decode").await;
        role("a", "draining").await;
    };
    let (answer, ()) = tokio::join!(request, flips);
    assert_eq!(answer.body, chat_chunks(3).concat());
    assert_eq!((a.sent().len(), b.sent().len()), (0, 1), "the other engine decodes after the flip");
    assert!(is_handed(&b.sent()[0].json()));
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_4_after_the_hand_off_deadline_the_decode_leg_has_no_hand_off() {
    let p = Fake::start([], Act::Slow(200, prefill_answer())).await;
    let d = Fake::start([], Act::Hang(chat_chunks(1)[..2].to_vec())).await;
    let full: &'static str = format!("{DECODE}\nstreams_max = 1").leak();
    let engines = [vllm("p", p.url(), PREFILL), vllm("d", d.url(), full)];
    let proxy = Proxy::start(&format!("[queue]\nhandoff_seconds = 0.2\n{SPLIT}"), &engines).await;
    // Both requests find the decode engine's single slot free when they begin.
    let bodies = [chat(true), chat_with(true, &"other words ".repeat(200), "")];
    let ask = |body: &String| leave_later(proxy.data, post("/v1/chat/completions", body.clone()));
    let clients = bodies.each_ref().map(ask);
    until("both decode", || d.sent().len() == 2).await;
    let sent = d.sent();
    assert!(is_handed(&sent[0].json()), "the request that got the slot");
    assert!(
        bodies.iter().any(|body| sent[1].body == body),
        "the client's body: the blocks may have been freed"
    );
    assert_eq!(p.sent().len(), 2);
    clients.iter().for_each(|client| client.abort());
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_7_a_hand_off_sent_to_a_decode_engine_is_not_sent_to_another() {
    let handed_over = |engine: &str| {
        prefill_answer()
            .replace("\"remote_request_id\":\"r\"", &format!("\"remote_request_id\":\"{engine}\""))
    };
    for seen in [Act::Json(503, "{}".into()), Act::Break(vec![])] {
        let what = format!("{seen:?}");
        let script = (0..8).map(|i| Act::Json(200, handed_over(&format!("r{i}"))));
        let p = Fake::start(script, Act::Silent).await;
        let fakes = Fake::start_sharing([seen], Act::Chunks(chat_chunks(3)), 2).await;
        let engines = [
            vllm("p", p.url(), PREFILL),
            vllm("d0", fakes[0].url(), DECODE),
            vllm("d1", fakes[1].url(), DECODE),
        ];
        let proxy = Proxy::start(&format!("[retry]\nattempts = 4\n{SPLIT}"), &engines).await;
        let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
        assert_eq!(answer.body, chat_chunks(3).concat(), "{what}");
        let sent: Vec<Value> =
            fakes.iter().flat_map(|fake| fake.sent()).map(|sent| sent.json()).collect();
        let mut used: Vec<_> = sent
            .iter()
            .filter(|sent| is_handed(sent))
            .map(|sent| sent["kv_transfer_params"]["remote_request_id"].to_string())
            .collect();
        assert_eq!(sent.len(), 2, "{what}");
        used.sort();
        let times = used.len();
        used.dedup();
        assert_eq!(used.len(), times, "{what}: used once each");
        assert_eq!(p.sent().iter().filter(|sent| is_prefill(&sent.json())).count(), times);
        proxy.settles().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_9_hand_offs_stay_within_a_compatibility_group() {
    let of = async |connector| {
        Emulated::with(EmulatorConfig { count: 2, connector, ..EmulatorConfig::default() }).await
    };
    let (pull, push) = (of(VllmConnector::Nixl).await, of(VllmConnector::NixlPush).await);
    let pushes = |role: &str| {
        let more =
            format!("engine = \"vllm\"\nconnector = \"nixl_push\"\nrole = \"{role}\"\npin = true");
        &*more.leak()
    };
    let engines = [
        vllm("p0", pull.url(0), PREFILL),
        vllm("d0", pull.url(1), DECODE),
        vllm("p1", push.url(0), pushes("prefill")),
        vllm("d1", push.url(1), pushes("decode")),
    ];
    let proxy = Proxy::start(SPLIT, &engines).await;
    let mut load = tokio::task::JoinSet::new();
    for client in 0..8 {
        let (data, bodies) = (proxy.data, (0..4).map(|i| pull.chat(true, 600 + 8 * i + client, 6)));
        let bodies: Vec<_> = bodies.collect();
        load.spawn(async move {
            for body in bodies {
                let answer = crate::client::send(data, post("/v1/chat/completions", body)).await;
                assert_eq!(answer.status, 200, "{}", answer.body);
            }
        });
    }
    while let Some(done) = load.join_next().await {
        done.unwrap();
    }
    proxy.settles().await;
    for group in [&pull, &push] {
        let (p, d) = (group.stats(0), group.stats(1));
        assert!(d.transfers_in > 0, "both groups transferred KV: {d:?}");
        assert_eq!((d.transfers_failed, d.recomputes), (0, 0));
        assert_eq!((p.bytes_out, p.held), (d.bytes_in, 0));
    }
}
