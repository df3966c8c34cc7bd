//! SGLang in its disaggregation modes: two concurrent legs, linked until the first byte.

use serde_json::Value;
use std::collections::BTreeSet;
use tidegate_emulator::{EmulatedEngine, SglangMode};
use tokio::task::JoinSet;

use crate::client::{post, send, until};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::fleet::{Emulated, tokens_of};
use crate::proxy::{Engine, Proxy, chat};

const DECODE: &str = "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"decode\"";

fn prefill(name: &'static str, url: String, bootstrap_port: u16) -> Engine {
    let more = format!(
        "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"prefill\"\n\
         bootstrap_port = {bootstrap_port}"
    );
    Engine { name, url, more: more.leak() }
}

fn decode(name: &'static str, url: String) -> Engine {
    Engine { name, url, more: DECODE }
}

async fn emulated(mode: SglangMode) -> Emulated {
    Emulated::of(1, EmulatedEngine::Sglang(mode)).await
}

fn room(sent: &Value) -> u64 {
    assert_eq!(sent["bootstrap_host"], "127.0.0.1");
    sent["bootstrap_room"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hand_off_transfers_kv_and_the_answer_equals_one_engines() {
    let (p, d) = (emulated(SglangMode::Prefill).await, emulated(SglangMode::Decode).await);
    let alone = emulated(SglangMode::Null).await;
    let engines = [prefill("p", p.url(0), p.address(0).port()), decode("d", d.url(0))];
    let proxy = Proxy::start("", &engines).await;
    // Short prompts as well: no engine accepts a colocated request.
    for (stream, prompt) in [(true, 600), (false, 601), (true, 3), (false, 4)] {
        let body = p.chat(stream, prompt, 12);
        let answer = proxy.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(!answer.body.contains("bootstrap"), "{}", answer.body);
        let whole = send(alone.address(0), post("/v1/chat/completions", body.clone())).await;
        assert_eq!(tokens_of(&answer), tokens_of(&whole), "equal to one engine alone");
        let direct = send(d.address(0), post("/v1/chat/completions", body)).await;
        assert_eq!(direct.status, 400, "the emulator takes no request without a room");
    }
    proxy.settles().await;
    let (p, d) = (p.stats(0), d.stats(0));
    assert_eq!((d.transfers_in, d.transfers_failed, d.recomputes), (4, 0, 0));
    assert_eq!((p.finished, p.aborts, p.held), (4, 0, 0), "every prefill was read to its end");
    assert_eq!(d.prompt_computed, 0, "nothing was prefilled twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_leg_cancels_the_other_and_the_retry_has_another_bootstrap_room() {
    let p = Fake::start([Act::Json(500, "{}".into())], Act::Json(200, chat_answer("x"))).await;
    let d =
        Fake::start([Act::Silent, Act::Json(500, "{}".into())], Act::Chunks(chat_chunks(3))).await;
    let engines = [prefill("p", p.url(), 8998), decode("d", d.url())];
    let proxy = Proxy::start("[retry]\nattempts = 4\n", &engines).await;
    let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
    assert_eq!(answer.body, chat_chunks(3).concat());
    until("the decode of the failed prefill is cut", || d.hanging() == 0).await;
    proxy.settles().await;
    // A leg may be cancelled before it is sent.
    let rooms = |fake: &Fake| fake.sent().iter().map(|sent| room(&sent.json())).collect::<Vec<_>>();
    let (prefills, decodes) = (rooms(&p), rooms(&d));
    assert_eq!(prefills.last(), decodes.last(), "both legs of an attempt meet in one room");
    let all: BTreeSet<_> = prefills.iter().chain(&decodes).collect();
    assert_eq!(all.len(), 3, "every attempt has its own room");
    let ids = p.sent().into_iter().chain(d.sent()).map(|sent| sent.headers["x-request-id"].clone());
    assert_eq!(ids.map(|id| id.as_bytes().to_vec()).collect::<BTreeSet<_>>().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_cancels_both_legs() {
    let p = Fake::start([], Act::Silent).await;
    let d = Fake::start([], Act::Silent).await;
    let engines = [prefill("p", p.url(), 8998), decode("d", d.url())];
    let proxy = Proxy::start("", &engines).await;
    crate::connectors::assert_client_cancels_both_legs(&proxy, &p, &d).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_is_not_cut_because_the_decode_has_begun() {
    let p = Fake::start([], Act::Silent).await;
    let d = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let engines = [prefill("p", p.url(), 8998), decode("d", d.url())];
    let proxy = Proxy::start("", &engines).await;
    let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
    assert_eq!(answer.body, chat_chunks(3).concat());
    proxy.settles().await;
    assert_eq!(p.hanging(), 1, "it may still be sending");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engines_client_error_is_forwarded() {
    let refused = "{\"error\":{\"message\":\"too long\",\"code\":400}}";
    for (of_prefill, of_decode) in [
        (Act::Silent, Act::Json(400, refused.into())),
        (Act::Json(400, refused.into()), Act::Silent),
    ] {
        let p = Fake::start([], of_prefill).await;
        let d = Fake::start([], of_decode).await;
        let engines = [prefill("p", p.url(), 8998), decode("d", d.url())];
        let proxy = Proxy::start("", &engines).await;
        let answer = proxy.post("/v1/chat/completions", &chat(false)).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (400, refused));
        until("the other leg is cut", || p.hanging() + d.hanging() == 0).await;
        proxy.settles().await;
    }
}

fn switchable(name: &'static str, url: String, role: &str, bootstrap_port: u16) -> Engine {
    let more = format!(
        "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole_switch = true\nrole = \"{role}\"\n\
         bootstrap_port = {bootstrap_port}"
    );
    Engine { name, url, more: more.leak() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_switch_drains_the_engine_calls_it_and_loses_nothing() {
    let p = Emulated::of(2, EmulatedEngine::Sglang(SglangMode::Prefill)).await;
    let d = emulated(SglangMode::Decode).await;
    let port = |fleet: &Emulated, engine| fleet.address(engine).port();
    let engines = [
        switchable("p0", p.url(0), "prefill", port(&p, 0)),
        switchable("p1", p.url(1), "prefill", port(&p, 1)),
        switchable("d", d.url(0), "decode", port(&d, 0)),
    ];
    let proxy = Proxy::start("", &engines).await;
    let ask = async |prompt: usize, output: usize| {
        let answer = proxy.post("/v1/chat/completions", &p.chat(true, prompt, output)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    };
    // A long answer is in progress while the roles of its engine and of another one change.
    let switching = async {
        until("it decodes", || d.stats(0).running == 1).await;
        assert!(proxy.set_role("p0", "{\"role\":\"decode\"}").await.status.is_success());
        proxy.takes_role("p0", "decode").await;
        let set = proxy.set_role("d", "{\"role\":\"prefill\"}").await;
        assert!(set.status.is_success(), "{} {}", set.body, proxy.admin("/v1/plan/history").await);
        let twice = proxy.set_role("d", "{\"role\":\"prefill\"}").await;
        assert_eq!(twice.status.as_u16(), 409, "{}", twice.body);
        assert_eq!(proxy.role_of("d").await, "draining");
        for prompt in 610..616 {
            ask(prompt, 8).await;
        }
    };
    tokio::join!(ask(600, 400), switching);
    proxy.takes_role("d", "prefill").await;
    assert!(p.stats(0).transfers_in >= 6, "the engine switched to decode pulled KV");
    // More concurrent requests than go to the engine whose prefills are known to be fast.
    let four = async |at| tokio::join!(ask(at, 4), ask(at + 1, 4), ask(at + 2, 4), ask(at + 3, 4));
    let sixteen = async |at| tokio::join!(four(at), four(at + 4), four(at + 8), four(at + 12));
    tokio::join!(sixteen(620), sixteen(636), sixteen(652));
    assert!(d.stats(0).bytes_out > 0, "the engine switched to prefill sent KV");
    proxy.settles().await;
    let history = proxy.admin("/v1/plan/history").await.to_string();
    assert!(history.contains("\"switched\"") && history.contains("\"draining\""), "{history}");
    let stats = [p.stats(0), p.stats(1), d.stats(0)];
    assert!(stats.iter().all(|s| s.transfers_failed + s.errors + s.aborts == 0), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_planner_switches_an_engine_after_a_lasting_shift() {
    let p = emulated(SglangMode::Prefill).await;
    let d = Emulated::of(3, EmulatedEngine::Sglang(SglangMode::Decode)).await;
    let port = |fleet: &Emulated, engine| fleet.address(engine).port();
    let engines = [
        switchable("p", p.url(0), "prefill", port(&p, 0)),
        switchable("d0", d.url(0), "decode", port(&d, 0)),
        switchable("d1", d.url(1), "decode", port(&d, 1)),
        switchable("d2", d.url(2), "decode", port(&d, 2)),
    ];
    let top = "[planner]\ndwell_seconds = 0.2\nswitch_seconds = 0.1\ndemand_window_seconds = 1\n";
    let proxy = Proxy::start(top, &engines).await;
    // Long prompts with two output tokens each: prefill work only, and more than one engine can do
    // in time.
    let mut load = JoinSet::new();
    for client in 0..96 {
        let (data, body) = (proxy.data, p.chat(true, 3500 + client, 2));
        load.spawn(async move { send(data, post("/v1/chat/completions", body)).await.status });
    }
    while let Some(done) = load.join_next().await {
        assert_eq!(done.unwrap(), 200);
    }
    proxy.journals("switched").await;
    let history = proxy.admin("/v1/plan/history").await;
    let flip = &history[0];
    assert_eq!((&flip["cause"], &flip["result"]), (&"prefill_short".into(), &"draining".into()));
    assert!(flip["numbers"]["requests_lost_moving"].as_f64().unwrap() > 0.0, "{flip}");
    proxy.settles().await;
    let stats: Vec<_> = (0..3).map(|engine| d.stats(engine)).collect();
    assert!(stats.iter().all(|s| s.transfers_failed + s.errors + s.aborts == 0), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_fails_to_switch_is_restored_or_quarantined() {
    let answer = |safe: bool| {
        let body =
            format!("{{\"success\":false,\"message\":\"no headroom\",\"safe_to_restore\":{safe}}}");
        Act::Json(400, body)
    };
    let p = Fake::start([answer(true), answer(false)], Act::Json(200, chat_answer("x"))).await;
    let none = || Act::Json(404, "{}".into());
    let (other, d) = (Fake::start([], none()).await, Fake::start([], none()).await);
    let engines = [
        switchable("p", p.url(), "prefill", 1),
        switchable("other", other.url(), "prefill", 2),
        switchable("d", d.url(), "decode", 3),
    ];
    let proxy = Proxy::start("", &engines).await;
    for (result, role) in [("restored", "prefill"), ("quarantined", "draining")] {
        // A decode peer is queried for its graphs first; it reports none.
        let answer = proxy.set_role("p", "{\"role\":\"decode\"}").await;
        assert!(answer.status.is_success(), "{}", answer.body);
        proxy.journals(result).await;
        assert_eq!(proxy.role_of("p").await, role);
    }
}
