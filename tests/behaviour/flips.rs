//! Role changes under load: by the admin API, by the planner, after an engine's death. No
//! recoverable request is lost.

use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tidegate_scheduler::planner::recording::{PlanRecord, replay};
use tokio::task::JoinSet;

use crate::client::{post, send, until};
use crate::fleet::Emulated;
use crate::proxy::{FREE, Proxy, vllm};

fn engines(fleet: &Emulated) -> Vec<crate::proxy::Engine> {
    const NAMES: [&str; 4] = ["e0", "e1", "e2", "e3"];
    (0..fleet.len()).map(|i| vllm(NAMES[i], fleet.url(i), FREE)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_swapped_by_hand_under_load_lose_nothing() {
    let fleet = Emulated::start(2).await;
    let proxy = Proxy::start("[planner]\nenabled = false\n", &engines(&fleet)).await;
    let mut load = JoinSet::new();
    for client in 0..4 {
        let (data, body) = (proxy.data, fleet.chat(true, 300 + client * 40, 8));
        load.spawn(async move {
            for _ in 0..12 {
                let answer = send(data, post("/v1/chat/completions", body.clone())).await;
                assert_eq!(answer.status, 200, "{}", answer.body);
                assert!(!answer.body.contains("\"error\""), "{}", answer.body);
                assert!(answer.body.ends_with("data: [DONE]\n\n"));
            }
        });
    }
    for turn in 0..10 {
        let (a, b) = if turn % 2 == 0 { ("decode", "prefill") } else { ("prefill", "decode") };
        assert_eq!(proxy.set_role("e1", "{\"role\":\"mixed\"}").await.status, 200);
        assert_eq!(proxy.set_role("e0", &format!("{{\"role\":\"{a}\"}}")).await.status, 200);
        assert_eq!(proxy.set_role("e1", &format!("{{\"role\":\"{b}\"}}")).await.status, 200);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    while let Some(done) = load.join_next().await {
        done.unwrap();
    }
    proxy.settles().await;
    assert!((0..2).all(|i| fleet.stats(i).recomputes == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_planner_moves_engines_to_where_the_work_is() {
    let fleet = Emulated::start(4).await;
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("plan.jsonl");
    let top = format!("[planner]\ndwell_seconds = 0.2\nrecord = {record:?}\n");
    let proxy = Proxy::start(&top, &engines(&fleet)).await;
    let count = |plan: &Value, role: &str| {
        plan["roles"].as_object().unwrap().values().filter(|r| *r == role).count()
    };
    let before = count(&proxy.admin("/v1/plan").await, "prefill");
    // Long prompts with a single output token: prefill work only.
    let mut load = JoinSet::new();
    for client in 0..48 {
        let (data, body) = (proxy.data, fleet.chat(true, 3500 + client, 2));
        load.spawn(async move { send(data, post("/v1/chat/completions", body)).await.status });
    }
    let mut most = before;
    while !load.is_empty() {
        most = most.max(count(&proxy.admin("/v1/plan").await, "prefill"));
        tokio::select! {
            done = load.join_next() => assert_eq!(done.unwrap().unwrap(), 200),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    assert!(most > before, "{most} of 4 prefill at most, {before} at first");
    let history = proxy.admin("/v1/plan/history").await;
    let flip = &history[0];
    assert!(flip["cause"].is_string() && flip["numbers"].is_object(), "{flip}");
    let reason = flip["reason"].as_str().unwrap();
    assert!(reason.contains("decode engines") && !reason.contains("NaN"), "{flip}");
    proxy.settles().await;
    let by_hand = proxy.set_role("e0", "{\"role\":\"draining\",\"pin\":true}").await;
    assert_eq!(by_hand.status, 200, "{}", by_hand.body);
    let flips = proxy.admin("/v1/plan/history").await.as_array().unwrap().len() as u64 - 1;
    drop(proxy);
    replay_equals_the_journal(&record, flips).await;
}

/// Replays the live planner's observations; compares with the journal's flips, except manual ones.
async fn replay_equals_the_journal(record: &Path, flips: u64) {
    let read = || std::fs::read_to_string(record).unwrap_or_default();
    // The file is closed when the control loop has stopped.
    let whole = |text: &str| text.contains("\"flipped\"") && text.ends_with('\n');
    until("the recording is closed", || whole(&read())).await;
    let text = read();
    let lines = text.lines().map(|line| serde_json::from_str::<PlanRecord<'_>>(line).unwrap());
    let replayed = replay(lines).unwrap();
    assert!(replayed.plans > 10 && replayed.flips == flips, "{replayed:?}, {flips} in the journal");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_role_is_independent_of_the_load() {
    let fleet = Emulated::start(3).await;
    let proxy = Proxy::start("[planner]\ndwell_seconds = 0.1\n", &engines(&fleet)).await;
    assert_eq!(proxy.set_role("e0", "{\"role\":\"decode\",\"pin\":true}").await.status, 200);
    let mut load = JoinSet::new();
    for client in 0..24 {
        let (data, body) = (proxy.data, fleet.chat(true, 3000 + client, 2));
        load.spawn(async move { send(data, post("/v1/chat/completions", body)).await.status });
    }
    while let Some(done) = load.join_next().await {
        assert_eq!(done.unwrap(), 200);
        assert_eq!(proxy.admin("/v1/plan").await["roles"]["e0"], "decode");
    }
    let history = proxy.admin("/v1/plan/history").await;
    let moved = history.as_array().unwrap().iter().filter(|flip| flip["backend"] == "e0");
    assert!(moved.clone().all(|flip| flip["cause"] == "operator"), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_remaining_engines_take_over_a_role_without_engines() {
    let mut fleet = Emulated::start(2).await;
    let proxy = Proxy::start("", &engines(&fleet)).await;
    let body = fleet.chat(true, 500, 6);
    assert_eq!(proxy.post("/v1/chat/completions", &body).await.status, 200);
    fleet.kill(0).await;
    for _ in 0..5 {
        let answer = proxy.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(!answer.body.contains("\"error\""), "{}", answer.body);
    }
    proxy.settles().await;
}
