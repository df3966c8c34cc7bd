//! A hand-off transfers real KV; a missing transfer is detected.

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tidegate_sim::Profile;
use tidegate_types::{Seconds, Tokens};

use super::client::*;
use crate::{EmulatorConfig, LoadFailurePolicy, start};

const PATH: &str = "/v1/completions";

fn recomputing() -> EmulatorConfig {
    EmulatorConfig { policy: LoadFailurePolicy::Recompute, ..config() }
}

#[tokio::test]
async fn a_hand_off_moves_the_kv_once_and_frees_it() {
    let fleet = two().await;
    let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
    let params = prefill(p, "real", 100).await;
    assert_eq!(fleet.stats(0).held, 1);
    assert_eq!(fleet.stats(0).kv_used, 100);
    let alone = post(p, PATH, &completion("real", 100, 8, false)).await;
    let decode = post(d, PATH, &with_kv(completion("real", 100, 8, true), &params)).await;
    assert_eq!(decode.words(0), alone.words(0), "the same text as from one engine");
    let (from, to) = (fleet.stats(0), fleet.stats(1));
    let bytes = 100 * config().profile.kv_bytes;
    assert_eq!((from.bytes_out, to.bytes_in, to.transfers_in), (bytes, bytes, 1));
    assert_eq!((to.prompt_computed, to.recomputes, to.transfers_failed), (0, 0, 0));
    idle(&fleet, 0).await;
    let again = post(d, PATH, &with_kv(completion("real", 100, 8, false), &params)).await;
    assert_eq!(again.status, 500, "the KV is read once only");
    assert_eq!(fleet.stats(1).transfers_failed, 1);
    fleet.stop().await;
}

#[tokio::test]
async fn invalid_hand_offs_fail_or_are_recomputed_and_counted() {
    for config in [config(), recomputing()] {
        let policy = config.policy;
        let fleet = start(config).await.unwrap();
        let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
        let good = prefill(p, "fake", 50).await;
        let own = prefill(d, "fake", 50).await;
        let wrong = |key: &str, value: Value| {
            let mut params = good.clone();
            params[key] = value;
            params
        };
        let mut failed = 0;
        for (params, tokens) in [
            (wrong("remote_engine_id", json!("00000000-0000-0000-0000-000000000000")), 50),
            (wrong("remote_request_id", json!("cmpl-guessed-0-00000000")), 50),
            (wrong("remote_port", json!(1)), 50),
            (own, 50),
            (good, 51),
        ] {
            for stream in [false, true] {
                failed += 1;
                let body = with_kv(completion("fake", tokens, 4, stream), &params);
                let answer = post(d, PATH, &body).await;
                let stats = fleet.stats(1);
                assert_eq!(stats.transfers_failed, failed, "{params}");
                assert_eq!((stats.transfers_in, stats.bytes_in), (0, 0));
                match (policy, stream) {
                    (LoadFailurePolicy::Recompute, _) => {
                        assert_eq!(answer.status, 200);
                        assert_eq!(stats.recomputes, failed);
                        let alone = post(p, PATH, &completion("fake", tokens, 4, false)).await;
                        assert_eq!(
                            answer.words(0),
                            alone.words(0),
                            "the answer is the same without a transfer"
                        );
                    }
                    (LoadFailurePolicy::Fail, false) => {
                        assert_eq!(answer.status, 500);
                        assert_eq!(answer.json()["error"]["type"], "InternalServerError");
                    }
                    (LoadFailurePolicy::Fail, true) => {
                        assert_eq!(answer.status, 200, "the head is sent before the failure");
                        assert_eq!(answer.events()[0]["error"]["code"], 500);
                        assert!(answer.text.ends_with("data: [DONE]\n\n"));
                    }
                }
            }
        }
        fleet.stop().await;
    }
}

#[tokio::test]
async fn the_text_is_derived_from_the_kv() {
    let fleet = two().await;
    let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
    let params = prefill(p, "one", 50).await;
    let decode = post(d, PATH, &with_kv(completion("two", 50, 8, false), &params)).await;
    let one = post(p, PATH, &completion("one", 50, 8, false)).await;
    assert_eq!(decode.words(0), one.words(0));
    fleet.stop().await;
}

#[tokio::test]
async fn a_lease_that_ends_frees_the_kv_and_the_hand_off_fails() {
    let fleet = start(EmulatorConfig { lease: Seconds(0.03), ..config() }).await.unwrap();
    let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
    let params = prefill(p, "late", 50).await;
    until("the lease ends", || fleet.stats(0).leases_expired == 1).await;
    idle(&fleet, 0).await;
    let decode = post(d, PATH, &with_kv(completion("late", 50, 4, false), &params)).await;
    assert_eq!(decode.status, 500);
    assert_eq!(fleet.stats(0).late_reads, 1);
    fleet.stop().await;
}

#[tokio::test]
async fn a_queued_decode_keeps_its_lease_alive() {
    let lease = Seconds(0.6);
    let prefills = start(EmulatorConfig { lease, ..config() }).await.unwrap();
    let profile = Profile { kv_capacity: Tokens(200), ..config().profile };
    let decodes = start(EmulatorConfig { lease, profile, ..config() }).await.unwrap();
    let (p, d) = (prefills.addresses()[0], decodes.addresses()[0]);
    let params = prefill(p, "patient", 150).await;
    // 650 steps of 1.5 ms: longer than the lease.
    let other =
        tokio::spawn(async move { post(d, PATH, &completion("first", 150, 650, false)).await });
    until("the memory is full", || decodes.stats(0).running == 1).await;
    let decode = post(d, PATH, &with_kv(completion("patient", 150, 2, false), &params)).await;
    assert_eq!(decode.status, 200, "{}", decode.text);
    assert_eq!((decodes.stats(0).transfers_in, prefills.stats(0).leases_expired), (1, 0));
    assert_eq!(other.await.unwrap().status, 200);
    idle(&prefills, 0).await;
    idle(&decodes, 0).await;
}

#[tokio::test]
async fn a_dead_prefill_engine_fails_the_hand_off_after_the_handshake_timeout() {
    for config in [config(), recomputing()] {
        let policy = config.policy;
        let mut fleet = start(config).await.unwrap();
        let d = fleet.addresses()[1];
        let params = prefill(fleet.addresses()[0], "dead", 50).await;
        fleet.kill(0).await;
        let answer = post(d, PATH, &with_kv(completion("dead", 50, 4, false), &params)).await;
        let recomputes = policy == LoadFailurePolicy::Recompute;
        assert_eq!(answer.status, if recomputes { 200 } else { 500 });
        let stats = fleet.stats(1);
        assert_eq!((stats.transfers_failed, stats.recomputes), (1, u64::from(recomputes)));
        idle(&fleet, 1).await;
        fleet.stop().await;
    }
}

#[tokio::test]
async fn a_restarted_engine_has_a_new_id_and_no_kv() {
    let mut fleet = two().await;
    let params = prefill(fleet.addresses()[0], "before", 50).await;
    let id = fleet.engine_id(0).to_owned();
    fleet.revive(0).await.unwrap();
    assert_ne!(fleet.engine_id(0), id);
    let d = fleet.addresses()[1];
    let answer = post(d, PATH, &with_kv(completion("before", 50, 4, false), &params)).await;
    assert_eq!(answer.status, 500);
    let params = prefill(fleet.addresses()[0], "after", 50).await;
    let answer = post(d, PATH, &with_kv(completion("after", 50, 4, false), &params)).await;
    assert_eq!(answer.status, 200);
    fleet.stop().await;
}

#[tokio::test]
async fn a_refused_or_left_decode_releases_the_prefill_before_its_lease_ends() {
    let prefills = two().await;
    let profile = Profile { kv_capacity: Tokens(200), ..config().profile };
    let decodes = start(EmulatorConfig { profile, ..config() }).await.unwrap();
    let (p, d) = (prefills.addresses()[0], decodes.addresses()[0]);
    let params = prefill(p, "refused", 150).await;
    let answer = post(d, PATH, &with_kv(completion("refused", 150, 0, false), &params)).await;
    assert_eq!(answer.status, 400);
    idle(&prefills, 0).await;

    let params = prefill(p, "left", 150).await;
    let first = completion("first", 150, 100_000, true);
    let holder = open(d, http::Method::POST, PATH, &[], first.to_string()).await.unwrap();
    until("the memory is full", || decodes.stats(0).running == 1).await;
    let body = with_kv(completion("left", 150, 4, true), &params).to_string();
    let queued = open(d, http::Method::POST, PATH, &[], body).await.unwrap();
    until("it is queued", || decodes.stats(0).waiting == 1).await;
    drop(queued);
    idle(&prefills, 0).await;
    assert_eq!(prefills.stats(0).leases_expired, 0);
    drop(holder);
    idle(&decodes, 0).await;
}

#[tokio::test]
async fn several_answers_share_one_hand_off_which_the_first_uses_up() {
    let fleet = two().await;
    let params = prefill(fleet.addresses()[0], "many", 50).await;
    let mut body = with_kv(completion("many", 50, 4, false), &params);
    body["n"] = json!(2);
    assert_eq!(post(fleet.addresses()[1], PATH, &body).await.status, 500);
    let stats = fleet.stats(1);
    assert_eq!((stats.transfers_in, stats.transfers_failed), (1, 1));
    idle(&fleet, 1).await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_waiting_hand_off_does_not_block_other_requests() {
    let fleet =
        start(EmulatorConfig { handshake_timeout: Seconds(60.0), ..config() }).await.unwrap();
    let d = fleet.addresses()[1];
    let mut params = prefill(fleet.addresses()[0], "slow", 50).await;
    params["remote_port"] = json!(1);
    let body = with_kv(completion("slow", 50, 4, true), &params).to_string();
    let mut waiting = open(d, http::Method::POST, PATH, &[], body).await.unwrap();
    until("it waits", || fleet.stats(1).waiting == 1).await;
    assert_eq!(post(d, PATH, &completion("quick", 50, 4, false)).await.status, 200);
    let first = tokio::time::timeout(std::time::Duration::ZERO, waiting.body.frame()).await;
    assert!(first.is_err(), "the decode leg waits for the KV");
    drop(waiting);
    idle(&fleet, 1).await;
    fleet.stop().await;
}

#[tokio::test]
async fn only_uncached_blocks_are_transferred() {
    let fleet = start(EmulatorConfig { prefix_cache: true, ..config() }).await.unwrap();
    let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
    let whole = post(d, PATH, &completion("shared", 64, 4, false)).await;
    let params = prefill(p, "shared", 96).await;
    let decode = post(d, PATH, &with_kv(completion("shared", 96, 4, false), &params)).await;
    assert_eq!((whole.status, decode.status), (http::StatusCode::OK, http::StatusCode::OK));
    let stats = fleet.stats(1);
    assert_eq!(stats.bytes_in, 32 * config().profile.kv_bytes);
    assert_eq!(stats.prompt_cached, 64);
    fleet.stop().await;
}
