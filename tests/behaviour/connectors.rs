//! vLLM connectors other than NIXL's pull: concurrent legs (Mooncake, Offloading), pushed KV, a
//! shared store. The emulated engines verify every hand-off.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use tidegate_emulator::{EmulatedEngine, EmulatorConfig, VllmConnector, VllmKvRole};

use crate::client::{leave_later, post, send, until};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::fleet::{Emulated, tokens_of};
use crate::proxy::{Engine, Proxy, SPLIT, chat, chat_with};

/// Returns a backend with this connector; its side channel is the address it listens on.
fn engine(name: &'static str, connector: &str, fleet: &Emulated, at: usize, more: &str) -> Engine {
    let port = fleet.address(at).port();
    vllm(name, connector, fleet.url(at), port, more)
}

fn vllm(name: &'static str, connector: &str, url: String, port: u16, more: &str) -> Engine {
    let more = format!(
        "engine = \"vllm\"\nconnector = \"{connector}\"\nbootstrap_port = {port}\n\
         side_channel_port = {port}\n{more}"
    );
    Engine { name, url, more: more.leak() }
}

const PREFILL: &str = "role = \"prefill\"\npin = true";
const DECODE: &str = "role = \"decode\"\npin = true";

async fn fleet(connector: VllmConnector) -> Emulated {
    Emulated::with(EmulatorConfig { count: 2, connector, ..EmulatorConfig::default() }).await
}

/// Answers through the proxy equal those of a single engine.
async fn answers_as_one_engine(proxy: &Proxy, fleet: &Emulated, prompts: [usize; 2]) {
    let alone = Emulated::of(1, EmulatedEngine::Plain).await;
    for (stream, prompt) in [(true, prompts[0]), (false, prompts[1])] {
        let body = fleet.chat(stream, prompt, 12);
        let answer = proxy.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let whole = send(alone.address(0), post("/v1/chat/completions", body)).await;
        assert_eq!(tokens_of(&answer), tokens_of(&whole), "equal to one engine alone");
    }
}

/// Roles are swapped; KV moves from the current prefill engine to the current decode engine.
async fn moves_both_ways(word: &str, connector: VllmConnector) -> [tidegate_emulator::Stats; 2] {
    let fleet = fleet(connector).await;
    let engines = [engine("a", word, &fleet, 0, ""), engine("b", word, &fleet, 1, "")];
    let proxy = Proxy::start(SPLIT, &engines).await;
    for (turn, (a, b)) in [("prefill", "decode"), ("decode", "prefill")].into_iter().enumerate() {
        for (name, role) in [("a", a), ("b", b)] {
            let body = json!({ "role": role, "pin": true }).to_string();
            assert!(proxy.set_role(name, &body).await.status.is_success());
        }
        answers_as_one_engine(&proxy, &fleet, [600 + 2 * turn, 601 + 2 * turn]).await;
    }
    proxy.settles().await;
    let stats = [fleet.stats(0), fleet.stats(1)];
    for of in &stats {
        assert_eq!((of.transfers_in, of.transfers_failed, of.recomputes), (2, 0, 0), "{of:?}");
        assert_eq!((of.errors, of.assertions), (0, 0));
    }
    assert_eq!((stats[0].bytes_in, stats[1].bytes_in), (stats[1].bytes_out, stats[0].bytes_out));
    assert!(stats.iter().all(|of| of.bytes_in > 0));
    stats
}

#[tokio::test(flavor = "multi_thread")]
async fn mooncake_transfers_kv_in_both_directions() {
    let stats = moves_both_ways("mooncake", VllmConnector::Mooncake).await;
    assert!(stats.iter().all(|of| of.held == 0 && of.finished == 4), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn offloading_transfers_kv_in_both_directions() {
    let stats = moves_both_ways("offloading", VllmConnector::Offloading).await;
    assert!(stats.iter().all(|of| of.held == 0 && of.finished == 4), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nixl_push_transfers_kv_in_both_directions() {
    moves_both_ways("nixl_push", VllmConnector::NixlPush).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_decode_reads_the_kv_that_its_prefill_put_into_the_shared_store() {
    let stats = moves_both_ways_through_store().await;
    // All but the last block and the last token, which a store cannot save.
    assert!(stats[1].prompt_computed <= 2 * 17, "{stats:?}");
}

async fn moves_both_ways_through_store() -> [tidegate_emulator::Stats; 2] {
    let fleet = fleet(VllmConnector::SharedStore).await;
    let engines = [
        engine("p", "shared_store", &fleet, 0, PREFILL),
        engine("d", "shared_store", &fleet, 1, DECODE),
    ];
    let proxy = Proxy::start(SPLIT, &engines).await;
    answers_as_one_engine(&proxy, &fleet, [600, 601]).await;
    proxy.settles().await;
    let stats = [fleet.stats(0), fleet.stats(1)];
    assert_eq!((stats[0].finished, stats[1].transfers_in), (2, 2), "{stats:?}");
    assert!(stats[0].bytes_out >= stats[1].bytes_in && stats[1].bytes_in > 0, "{stats:?}");
    // The same prompts in the other direction: a store has no direction.
    assert_eq!(proxy.set_role("d", "{\"role\":\"prefill\",\"pin\":true}").await.status, 200);
    assert_eq!(proxy.set_role("p", "{\"role\":\"decode\",\"pin\":true}").await.status, 200);
    answers_as_one_engine(&proxy, &fleet, [602, 603]).await;
    assert_eq!(fleet.stats(0).transfers_in, 2, "it found what the other one put there");
    proxy.settles().await;
    stats
}

#[tokio::test(flavor = "multi_thread")]
async fn these_connectors_run_short_requests_colocated() {
    for (word, connector) in [
        ("mooncake", VllmConnector::Mooncake),
        ("offloading", VllmConnector::Offloading),
        ("nixl_push", VllmConnector::NixlPush),
        ("shared_store", VllmConnector::SharedStore),
    ] {
        let fleet = fleet(connector).await;
        let engines = [engine("p", word, &fleet, 0, PREFILL), engine("d", word, &fleet, 1, DECODE)];
        let proxy = Proxy::start(SPLIT, &engines).await;
        answers_as_one_engine(&proxy, &fleet, [3, 4]).await;
        proxy.settles().await;
        let (p, d) = (fleet.stats(0), fleet.stats(1));
        let moved = p.transfers_in + d.transfers_in;
        assert_eq!((p.finished + d.finished, moved), (2, 0), "{word}: one leg each");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_decode_reads_from_the_rank_that_prefilled() {
    let config = EmulatorConfig {
        count: 2,
        connector: VllmConnector::Mooncake,
        ranks: 4,
        ..EmulatorConfig::default()
    };
    let fleet = Emulated::with(config).await;
    let engines =
        [engine("p", "mooncake", &fleet, 0, PREFILL), engine("d", "mooncake", &fleet, 1, DECODE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    for prompt in 600..612 {
        let answer = proxy.post("/v1/chat/completions", &fleet.chat(true, prompt, 4)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    proxy.settles().await;
    let d = fleet.stats(1);
    assert_eq!((d.transfers_in, d.transfers_failed, d.recomputes), (12, 0, 0), "{d:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_engine_is_queried_again() {
    let mut fleet = fleet(VllmConnector::Mooncake).await;
    let engines =
        [engine("p", "mooncake", &fleet, 0, PREFILL), engine("d", "mooncake", &fleet, 1, DECODE)];
    // No probe detects the restart.
    let proxy = Proxy::start(&format!("[probe]\ninterval_seconds = 60\n{SPLIT}"), &engines).await;
    answers_as_one_engine(&proxy, &fleet, [600, 601]).await;
    // Restarted with another engine id, before any probe could detect it.
    fleet.revive(0).await;
    answers_as_one_engine(&proxy, &fleet, [602, 603]).await;
    answers_as_one_engine(&proxy, &fleet, [604, 605]).await;
    let transfers = fleet.stats(1).transfers_in;
    assert!(transfers >= 5, "the new id is in use after at most one failure: {transfers}");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_get_prefill_legs_and_consumers_decode_legs_only() {
    let strict = async |kv_role| {
        let connector = VllmConnector::Mooncake;
        Emulated::with(EmulatorConfig { connector, kv_role, ..EmulatorConfig::default() }).await
    };
    let (p, mut d) = (strict(VllmKvRole::Producer).await, strict(VllmKvRole::Consumer).await);
    let more = "models = [\"m\"]\nkv_role = ";
    let engines = [
        engine("p", "mooncake", &p, 0, &format!("{more}\"kv_producer\"")),
        engine("d", "mooncake", &d, 0, &format!("{more}\"kv_consumer\"")),
    ];
    let proxy = Proxy::start(SPLIT, &engines).await;
    for (name, role) in [("p", "decode"), ("p", "mixed"), ("d", "prefill"), ("d", "mixed")] {
        let refused = proxy.set_role(name, &format!("{{\"role\":\"{role}\"}}")).await;
        assert!(refused.status.is_client_error(), "{name} as {role}: {}", refused.body);
    }
    for prompt in [3, 600, 601, 602] {
        let answer = proxy.post("/v1/chat/completions", &p.chat(true, prompt, 4)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    assert!(d.stats(0).transfers_in > 0);
    assert_eq!((p.stats(0).assertions, d.stats(0).assertions), (0, 0));
    // No decode engine is left: the producer runs requests colocated, because a hand-off would crash it.
    d.kill(0).await;
    for prompt in [603, 604] {
        let answer = proxy.post("/v1/chat/completions", &p.chat(true, prompt, 4)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    assert_eq!(p.stats(0).assertions, 0);
    proxy.settles().await;
}

/// Two scripted engines that the P2P tier would link.
async fn offloading(p: &Fake, d: &Fake, top: &str) -> Proxy {
    let of = |name, fake: &Fake, more| vllm(name, "offloading", fake.url(), 5710, more);
    Proxy::start(&format!("{top}{SPLIT}"), &[of("p", p, PREFILL), of("d", d, DECODE)]).await
}

fn handed(sent: &Value, party: &str) -> String {
    sent["kv_transfer_params"][party]["kv_request_id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_leg_gets_its_own_body_and_both_keep_the_clients_headers() {
    let p = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let d = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let proxy = offloading(&p, &d, "").await;
    let mut request =
        post("/v1/chat/completions", chat_with(true, &"word ".repeat(400), ",\"x\":1e2"));
    request.headers_mut().insert("authorization", "Bearer client-key".parse().unwrap());
    let answer = send(proxy.data, request).await;
    assert_eq!(answer.body, chat_chunks(3).concat(), "the decode's answer alone");
    proxy.settles().await;
    let (prefill, decode) = (&p.sent()[0], &d.sent()[0]);
    for leg in [prefill, decode] {
        assert_eq!(leg.headers["authorization"], "Bearer client-key");
        assert!(String::from_utf8_lossy(&leg.body).contains("\"x\":1e2"));
    }
    let (prefill, decode) = (prefill.json(), decode.json());
    assert_eq!(handed(&prefill, "remote_decoder"), handed(&decode, "remote_prefiller"));
    assert_eq!((&prefill["max_tokens"], &prefill["stream"]), (&json!(1), &json!(false)));
    assert_eq!((&decode["max_tokens"], &decode["stream"]), (&json!(16), &json!(true)));
    assert_eq!(decode["kv_transfer_params"]["remote_prefiller"]["remote_port"], 5710);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_leg_cancels_the_other_and_the_retry_has_fresh_ids() {
    let p = Fake::start([Act::Break(vec![])], Act::Json(200, chat_answer("x"))).await;
    let d =
        Fake::start([Act::Silent, Act::Json(500, "{}".into())], Act::Chunks(chat_chunks(3))).await;
    let proxy =
        offloading(&p, &d, "[retry]\nattempts = 6\n[probe]\nfailures_to_eject = 100\n").await;
    let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
    assert_eq!(answer.body, chat_chunks(3).concat());
    until("the decode of the failed prefill is cut", || d.hanging() == 0).await;
    proxy.settles().await;
    // A leg may be cancelled before it is sent, and a retry may run colocated.
    let split = |fake: &Fake, party: &str| {
        let sent = fake.sent().into_iter().map(|sent| sent.json());
        let split = sent.filter(|sent| sent["kv_transfer_params"].is_object());
        split.map(|sent| handed(&sent, party)).collect::<Vec<_>>()
    };
    let (prefills, decodes) = (split(&p, "remote_decoder"), split(&d, "remote_prefiller"));
    assert!(prefills.len() >= 2, "{prefills:?}");
    let ids: BTreeSet<_> = prefills.iter().collect();
    assert_eq!(ids.len(), prefills.len(), "no id is used twice: {prefills:?}");
    assert!(
        decodes.iter().all(|id| ids.contains(id)),
        "{decodes:?} without a prefill leg in {prefills:?}"
    );
    let names = p.sent().into_iter().map(|sent| sent.headers["x-request-id"].clone());
    assert_eq!(
        names.map(|id| id.as_bytes().to_vec()).collect::<BTreeSet<_>>().len(),
        p.sent().len()
    );
}

/// Sends a request whose legs run on `p` and `d` at the same time, and asserts that both legs end when
/// its client leaves.
pub async fn assert_client_cancels_both_legs(proxy: &Proxy, p: &Fake, d: &Fake) {
    let client = leave_later(proxy.data, post("/v1/chat/completions", chat(true)));
    until("both run", || p.hanging() + d.hanging() == 2).await;
    client.abort();
    until("both are cancelled", || p.hanging() + d.hanging() == 0).await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_cancels_both_legs() {
    let (p, d) = (Fake::start([], Act::Silent).await, Fake::start([], Act::Silent).await);
    let proxy = offloading(&p, &d, "").await;
    assert_client_cancels_both_legs(&proxy, &p, &d).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_is_not_cut_because_the_decode_has_begun_or_its_client_has_left() {
    let p = Fake::start([], Act::Silent).await;
    let d = Fake::start([], Act::Hang(chat_chunks(3)[..2].to_vec())).await;
    let proxy = offloading(&p, &d, "").await;
    let client = leave_later(proxy.data, post("/v1/chat/completions", chat(true)));
    until("it streams", || d.hanging() == 1 && p.hanging() == 1).await;
    let streams = async || proxy.admin("/v1/requests").await.to_string().contains("streaming");
    while !streams().await {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    client.abort();
    until("the decode is cancelled", || d.hanging() == 0).await;
    proxy.settles().await;
    assert_eq!(p.hanging(), 1, "it may still be sending");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_reports_the_prefill_engines_cached_tokens() {
    let cached = |tokens: u32| format!(",\"prompt_tokens_details\":{{\"cached_tokens\":{tokens}}}");
    let with = |text: &str, tokens| {
        chat_answer(text).replace(
            "\"completion_tokens\":3",
            &format!("\"completion_tokens\":3{}", cached(tokens)),
        )
    };
    let p = Fake::start([], Act::Json(200, with("x", 4))).await;
    let d = Fake::start([], Act::Slow(200, with("all", 9))).await;
    let proxy = offloading(&p, &d, "").await;
    let answer = proxy.post("/v1/chat/completions", &chat(false)).await;
    assert_eq!(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_retried_elsewhere_if_the_bootstrap_server_does_not_answer() {
    let fleet = fleet(VllmConnector::Mooncake).await;
    let refusing = crate::proxy::RefusingAddress::new();
    let engines = [
        vllm("p", "mooncake", fleet.url(0), refusing.address.port(), PREFILL),
        engine("d", "mooncake", &fleet, 1, DECODE),
    ];
    let proxy = Proxy::start("", &engines).await;
    answers_as_one_engine(&proxy, &fleet, [600, 601]).await;
    assert_eq!((fleet.stats(0).finished, fleet.stats(1).finished), (0, 2));
    let fleet = proxy.admin("/v1/fleet").await.to_string();
    assert!(!fleet.contains("\"down\""), "the engine's own port is healthy: {fleet}");
    proxy.settles().await;
}
