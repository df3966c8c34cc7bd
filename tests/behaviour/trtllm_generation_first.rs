//! TensorRT-LLM, generation first: concurrent legs, of which the generation's is sent first; and
//! signed hand-offs in either style.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use tidegate_emulator::{EmulatedEngine, EmulatorConfig};

use crate::client::{post, send, until};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::fleet::{Emulated, tokens_of};
use crate::proxy::{Engine, Proxy, RefusingAddress, SPLIT, chat, chat_with};

fn engine(name: &'static str, url: String, more: &str) -> Engine {
    let more = format!(
        "engine = \"trtllm\"\nconnector = \"transceiver\"\n\
         schedule_style = \"generation_first\"\n{more}"
    );
    Engine { name, url, more: more.leak() }
}

const PREFILL: &str = "role = \"prefill\"\npin = true";
const DECODE: &str = "role = \"decode\"\npin = true";

const INFO: &str = "/server_info";

/// `/server_info` of a context engine.
fn reports_endpoint(fake: &Fake) {
    let params = json!({ "ctx_dp_rank": 0, "ctx_info_endpoint": ["tcp://10.0.0.1:5000"] });
    fake.set_answer(INFO, 200, &json!({ "disaggregated_params": params }).to_string());
}

/// A context engine that runs this action for every request.
async fn context(act: Act) -> Fake {
    let fake = Fake::start([], act).await;
    reports_endpoint(&fake);
    fake
}

/// Returns the legs that an engine received.
fn legs(fake: &Fake) -> Vec<Value> {
    fake.sent().iter().map(|sent| sent.json()["disaggregated_params"].clone()).collect()
}

async fn signed(key: &str) -> Emulated {
    let config = EmulatorConfig {
        count: 2,
        kind: EmulatedEngine::Trtllm,
        disagg_key: Some(key.to_owned()),
        ..EmulatorConfig::default()
    };
    Emulated::with(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_hand_offs_transfer_kv_in_both_directions_and_styles() {
    for style in ["", "schedule_style = \"context_first\""] {
        let fleet = signed("secret").await;
        let more = format!("{style}\ndisagg_key = \"secret\"");
        let mut engines = [engine("a", fleet.url(0), &more), engine("b", fleet.url(1), &more)];
        for engine in &mut engines {
            let style_line = "schedule_style = \"generation_first\"\n";
            let once = engine.more.replacen(style_line, "", usize::from(!style.is_empty()));
            engine.more = once.leak();
        }
        let proxy = Proxy::start(SPLIT, &engines).await;
        for (turn, (a, b)) in [("prefill", "decode"), ("decode", "prefill")].into_iter().enumerate()
        {
            for (name, role) in [("a", a), ("b", b)] {
                let body = json!({ "role": role, "pin": true }).to_string();
                assert!(proxy.set_role(name, &body).await.status.is_success());
            }
            for (stream, prompt) in [(true, 600 + 2 * turn), (false, 601 + 2 * turn)] {
                let body = fleet.chat(stream, prompt, 12);
                let answer = proxy.post("/v1/chat/completions", &body).await;
                assert_eq!(answer.status, 200, "{}", answer.body);
                let alone = send(fleet.address(0), post("/v1/chat/completions", body)).await;
                assert_eq!(tokens_of(&answer), tokens_of(&alone), "equal to one engine alone");
            }
        }
        proxy.settles().await;
        for at in 0..2 {
            let stats = fleet.stats(at);
            let failed = (stats.transfers_failed, stats.recomputes, stats.errors, stats.held);
            assert_eq!((stats.transfers_in, failed), (2, (0, 0, 0, 0)), "{stats:?}");
            assert!(stats.bytes_in > 0 && stats.bytes_out > 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unsigned_and_wrongly_signed_hand_offs_are_refused() {
    let fleet = signed("secret").await;
    for more in ["", "disagg_key = \"another\""] {
        let engines = [
            engine("p", fleet.url(0), &format!("{PREFILL}\n{more}")),
            engine("d", fleet.url(1), &format!("{DECODE}\n{more}")),
        ];
        let proxy = Proxy::start(SPLIT, &engines).await;
        let answer = proxy.post("/v1/chat/completions", &fleet.chat(false, 600, 4)).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert!(answer.body.contains("authentication"), "{}", answer.body);
        proxy.settles().await;
    }
    assert_eq!(fleet.stats(1).transfers_in, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_fails_cancels_its_generation_and_the_retry_has_another_id() {
    let script = [Act::Break(vec![])];
    let ps = Fake::start_sharing(script, Act::Json(200, chat_answer("x")), 2).await;
    ps.iter().for_each(reports_endpoint);
    let d = Fake::start([Act::Silent], Act::Chunks(chat_chunks(3))).await;
    let engines = [
        engine("p0", ps[0].url(), PREFILL),
        engine("p1", ps[1].url(), PREFILL),
        engine("d", d.url(), DECODE),
    ];
    let top = format!("[retry]\nattempts = 4\n[probe]\nfailures_to_eject = 100\n{SPLIT}");
    let proxy = Proxy::start(&top, &engines).await;
    let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
    assert_eq!(answer.body, chat_chunks(3).concat());
    until("the generation of the failed context is cut", || d.hanging() == 0).await;
    proxy.settles().await;
    let id = |leg: &Value| leg["disagg_request_id"].as_u64().unwrap();
    let (contexts, generations) = ([legs(&ps[0]), legs(&ps[1])].concat(), legs(&d));
    for generation in &generations {
        let context = contexts.iter().find(|context| id(context) == id(generation));
        let context = context.expect("the legs of an attempt share an id");
        assert_eq!(
            (&context["schedule_style"], &generation["schedule_style"]),
            (&json!(1), &json!(1))
        );
        assert_eq!(generation["ctx_info_endpoint"], "tcp://10.0.0.1:5000");
    }
    let ids: BTreeSet<_> = generations.iter().map(id).collect();
    assert_eq!((contexts.len(), generations.len(), ids.len()), (2, 2, 2));
    assert!(ids.iter().all(|id| *id >= 1 << 40), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_generation_leg_is_sent_first_and_without_it_no_context_leg() {
    let p = context(Act::Json(200, chat_answer("whole"))).await;
    let refusing = RefusingAddress::new();
    let named = |role: &str| format!("models = [\"m\"]\n{role}");
    let engines =
        [engine("p", p.url(), &named(PREFILL)), engine("d", refusing.url(), &named(DECODE))];
    let proxy = Proxy::start(SPLIT, &engines).await;
    let answer = proxy.post("/v1/chat/completions", &chat(false)).await;
    assert_eq!(answer.body, chat_answer("whole"));
    assert!(
        legs(&p).iter().all(Value::is_null),
        "a context without its generation: {:?}",
        legs(&p)
    );
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_engine_is_queried_once() {
    let p = context(Act::Json(200, chat_answer("x"))).await;
    let d = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let engines = [engine("p", p.url(), PREFILL), engine("d", d.url(), DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    for number in 0..4 {
        let body = chat_with(true, &format!("{number} words ").repeat(300), "");
        let answer = proxy.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.body, chat_chunks(3).concat());
    }
    proxy.settles().await;
    assert_eq!((p.count_of(INFO), legs(&p).len(), legs(&d).len()), (1, 4, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_cancels_both_legs() {
    let p = context(Act::Silent).await;
    let d = Fake::start([], Act::Silent).await;
    let engines = [engine("p", p.url(), PREFILL), engine("d", d.url(), DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    crate::connectors::assert_client_cancels_both_legs(&proxy, &p, &d).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_is_not_cut_because_the_generation_has_begun() {
    let p = context(Act::Silent).await;
    let d = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let engines = [engine("p", p.url(), PREFILL), engine("d", d.url(), DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
    assert_eq!(answer.body, chat_chunks(3).concat());
    proxy.settles().await;
    assert_eq!(p.hanging(), 1, "it may still be sending");
}
