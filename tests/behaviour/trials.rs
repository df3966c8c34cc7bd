//! Trial hand-offs between engines, and the effect of a failed pair on requests.

use serde_json::Value;
use std::time::Duration;
use tidegate_emulator::EmulatorConfig;

use crate::client::{post, send, within};
use crate::fake::{Act, Fake, chat_answer};
use crate::fleet::{Emulated, tokens_of};
use crate::proxy::{DECODE, FREE, PREFILL, Proxy, SPLIT, chat, vllm};

const TRIALS: &str =
    "[placement]\nspill = false\n[probe]\ntimeout_seconds = 15\ntrial_handoffs = true\n";

/// The failed hand-offs of a backend in a view of the fleet.
fn failed(fleet: &Value, backend: &str) -> Vec<String> {
    let backends = fleet["backends"].as_array().unwrap();
    let one = backends.iter().find(|one| one["name"] == backend).unwrap();
    let names = one["failed_hand_offs"].as_array();
    names.into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Waits until this many trials have this result.
async fn tried(proxy: &Proxy, result: &str, count: u64) {
    let name = format!("tidegate_handoff_trials_total{{result=\"{result}\"}} ");
    let waiting = async {
        loop {
            let page = send(proxy.admin, crate::client::get("/metrics")).await.body;
            let value = page.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok());
            if value.unwrap_or(0) >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(waiting).await;
}

/// An engine whose KV cannot be transferred: it advertises a host that does not exist.
async fn unreachable() -> Emulated {
    let advertise = Some("kv.invalid".to_owned());
    Emulated::with(EmulatorConfig { advertise, count: 1, ..EmulatorConfig::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_whose_trial_fails_gets_no_hand_off() {
    let (good, bad) = (Emulated::start(1).await, unreachable().await);
    let engines = [vllm("bad", bad.url(0), PREFILL), vllm("good", good.url(0), DECODE)];
    let proxy = Proxy::start(TRIALS, &engines).await;
    tried(&proxy, "fails", 1).await;
    tried(&proxy, "works", 1).await;
    let fleet = proxy.admin("/v1/fleet").await;
    assert_eq!((failed(&fleet, "bad"), failed(&fleet, "good")), (vec!["good".to_owned()], vec![]));
    let misfits = fleet["backends"][0]["misfits"].to_string();
    assert!(misfits.contains("trial hand-off to good failed"), "{misfits}");
    let (received, failures) = (good.stats(0).transfers_in, good.stats(0).transfers_failed);
    for n in 0..6 {
        let body = bad.chat(n % 2 == 0, 300 + n, 12);
        let answer = send(proxy.data, post("/v1/chat/completions", body)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(tokens_of(&answer).split_whitespace().count(), 12);
    }
    let after = good.stats(0);
    assert_eq!((after.transfers_in, after.transfers_failed), (received, failures), "none is tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_split_over_a_successful_pair_and_trial_prompts_are_short_and_few() {
    let fleet = Emulated::start(5).await;
    let names = ["e0", "e1", "e2", "e3", "e4"];
    let engines: Vec<_> =
        names.iter().enumerate().map(|(i, name)| vllm(name, fleet.url(i), FREE)).collect();
    let proxy = Proxy::start(TRIALS, &engines).await;
    tried(&proxy, "works", 8).await;
    let computed: u64 = (0..5).map(|i| fleet.stats(i).prompt_computed).sum();
    let received: u64 = (0..5).map(|i| fleet.stats(i).transfers_in).sum();
    assert!(received >= 8 && computed < received * 40, "{received} trials, {computed} tokens");
    let view = proxy.admin("/v1/fleet").await;
    assert!(names.iter().all(|name| failed(&view, name).is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_no_prompt_is_sent() {
    let fakes = [
        Fake::start([], Act::Json(200, chat_answer("x"))).await,
        Fake::start([], Act::Json(200, chat_answer("x"))).await,
    ];
    let engines = [vllm("a", fakes[0].url(), FREE), vllm("b", fakes[1].url(), FREE)];
    let proxy = Proxy::start(SPLIT, &engines).await;
    let answer = send(proxy.data, post("/v1/chat/completions", chat(false))).await;
    assert_eq!(answer.status, 200);
    let prompts: Vec<_> = fakes.iter().flat_map(Fake::sent).map(|sent| sent.path).collect();
    assert!(prompts.iter().all(|path| path == "/v1/chat/completions"), "{prompts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_returning_engine_gets_a_new_trial() {
    let mut fleet = Emulated::start(2).await;
    let engines = [vllm("e0", fleet.url(0), FREE), vllm("e1", fleet.url(1), FREE)];
    let proxy = Proxy::start(TRIALS, &engines).await;
    tried(&proxy, "works", 2).await;
    fleet.kill(1).await;
    proxy.shows("e1", |e1| e1["health"] == "down").await;
    fleet.revive(1).await;
    tried(&proxy, "works", 4).await;
}
