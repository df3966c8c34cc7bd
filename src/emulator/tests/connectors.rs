//! vLLM's other connectors, and generation first: a mismatched pair hands nothing over.

use serde_json::{Value, json};
use tidegate_types::Seconds;

use super::client::*;
use crate::{
    EmulatedEngine, EmulatorConfig, LoadFailurePolicy, RunningEmulator, VllmConnector, VllmKvRole,
    start,
};

const PATH: &str = "/v1/completions";

async fn engines(connector: VllmConnector) -> RunningEmulator {
    start(EmulatorConfig { connector, ..config() }).await.unwrap()
}

/// A prefill leg that can end only by its length.
fn one_token(name: &str, params: &Value) -> Value {
    let mut body = with_kv(completion(name, 50, 1, false), params);
    body["ignore_eos"] = json!(true);
    body
}

fn sends(transfer: &str) -> Value {
    json!({ "do_remote_prefill": false, "do_remote_decode": true, "transfer_id": transfer })
}

fn wants(fleet: &RunningEmulator, engine_id: &str, transfer: &str) -> Value {
    json!({
        "do_remote_prefill": true, "do_remote_decode": false, "transfer_id": transfer,
        "remote_bootstrap_addr": format!("http://{}", fleet.addresses()[0]),
        "remote_engine_id": engine_id,
    })
}

#[tokio::test]
async fn both_mooncake_legs_may_come_in_either_order() {
    let fleet = engines(VllmConnector::Mooncake).await;
    let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
    let told = get(p, "/query").await.json();
    let id = told["0"]["engine_id"].as_str().unwrap();
    assert_eq!(id, fleet.engine_id(0));
    for (turn, prefill_first) in [true, false].into_iter().enumerate() {
        let transfer = format!("xfer-{turn}");
        let prefill = one_token("both", &sends(&transfer));
        let decode = with_kv(completion("both", 50, 4, false), &wants(&fleet, id, &transfer));
        let answer = if prefill_first {
            let answer = post(p, PATH, &prefill).await;
            assert_eq!(answer.json()["kv_transfer_params"], Value::Null, "no hand-off is returned");
            post(d, PATH, &decode).await
        } else {
            let (answer, prefilled) = tokio::join!(post(d, PATH, &decode), async {
                until("the decode waits", || fleet.stats(1).waiting == 1).await;
                post(p, PATH, &prefill).await
            });
            assert_eq!(prefilled.status, 200);
            answer
        };
        assert_eq!(answer.status, 200, "{}", answer.text);
        idle(&fleet, 0).await;
    }
    let stats = fleet.stats(1);
    assert_eq!((stats.transfers_in, stats.transfers_failed), (2, 0));
    assert_eq!(stats.bytes_in, fleet.stats(0).bytes_out);
    fleet.stop().await;
}

#[tokio::test]
async fn a_mooncake_decode_without_its_prefill_fails_or_recomputes_and_is_counted() {
    for policy in [LoadFailurePolicy::Fail, LoadFailurePolicy::Recompute] {
        let connector = VllmConnector::Mooncake;
        let fleet = start(EmulatorConfig { connector, policy, ..config() }).await.unwrap();
        let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
        let id = fleet.engine_id(0);
        let mut stops = one_token("lone", &sends("stops"));
        stops["stop"] = json!(["x"]);
        let mut ends = one_token("lone", &sends("ends"));
        ends["ignore_eos"] = json!(false);
        let mut long = one_token("lone", &sends("long"));
        long["max_tokens"] = json!(2);
        for prefill in [stops, ends, long, one_token("lone", &sends("another"))] {
            assert_eq!(post(p, PATH, &prefill).await.status, 200);
        }
        let mut failed = 0;
        for (engine, transfer) in [
            (id, "never"),
            // Prefilled with more than one token: it might have stopped.
            (id, "stops"),
            (id, "ends"),
            (id, "long"),
            ("another-engine", "another"),
        ] {
            failed += 1;
            let body = with_kv(completion("lone", 50, 4, false), &wants(&fleet, engine, transfer));
            let answer = post(d, PATH, &body).await;
            let recomputes = policy == LoadFailurePolicy::Recompute;
            assert_eq!(answer.status, if recomputes { 200 } else { 500 }, "{transfer}");
            let stats = fleet.stats(1);
            assert_eq!((stats.transfers_in, stats.transfers_failed), (0, failed), "{transfer}");
            assert_eq!(stats.recomputes, if recomputes { failed } else { 0 });
        }
        fleet.stop().await;
    }
}

#[tokio::test]
async fn a_rank_has_only_the_kv_that_it_computed() {
    let connector = VllmConnector::Mooncake;
    let fleet = start(EmulatorConfig { connector, ranks: 2, ..config() }).await.unwrap();
    let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
    let told = get(p, "/query").await.json();
    let id = |rank: &str| told[rank]["engine_id"].as_str().unwrap().to_owned();
    for (transfer, asked, status) in [("right", "1", 200), ("wrong", "0", 500)] {
        let body = one_token("rank", &sends(transfer)).to_string();
        let pinned = [("x-data-parallel-rank", "1")];
        let prefilled = send(p, http::Method::POST, PATH, &pinned, body).await;
        assert_eq!(prefilled.status, 200);
        let params = wants(&fleet, &id(asked), transfer);
        let answer = post(d, PATH, &with_kv(completion("rank", 50, 4, false), &params)).await;
        assert_eq!(answer.status, status, "{transfer}");
    }
    fleet.stop().await;
}

#[tokio::test]
async fn an_engine_with_a_fixed_kv_role_aborts_on_the_other_role() {
    let connector = VllmConnector::Mooncake;
    for (kv_role, serves) in [(VllmKvRole::Producer, 200), (VllmKvRole::Consumer, 404)] {
        let fleet = start(EmulatorConfig { connector, kv_role, ..config() }).await.unwrap();
        let at = fleet.addresses()[0];
        assert_eq!(get(at, "/query").await.status, serves, "a consumer has no bootstrap server");
        let whole = completion("whole", 50, 4, false);
        assert_eq!(post(at, PATH, &whole).await.status, 200);
        let wrong = match kv_role {
            VllmKvRole::Producer => wants(&fleet, fleet.engine_id(1), "x"),
            _ => sends("x"),
        };
        assert_eq!(post(at, PATH, &one_token("wrong", &wrong)).await.status, 500);
        assert_eq!(fleet.stats(0).assertions, 1);
        assert_eq!(get(at, "/health").await.status, 503);
        assert_eq!(post(at, PATH, &whole).await.status, 500, "the engine has aborted");
        fleet.stop().await;
    }
}

#[tokio::test]
async fn an_offloaded_hand_off_is_read_at_its_side_channel_only() {
    let fleet = engines(VllmConnector::Offloading).await;
    let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
    let wants = |id: &str, port: u16| {
        let party = json!({ "kv_request_id": id, "remote_host": "127.0.0.1", "remote_port": port });
        with_kv(completion("tier", 50, 4, false), &json!({ "remote_prefiller": party }))
    };
    let gives = json!({ "remote_decoder": { "kv_request_id": "a" } });
    assert_eq!(post(p, PATH, &one_token("tier", &gives)).await.status, 200);
    assert_eq!(post(d, PATH, &wants("b", p.port())).await.status, 500, "the KV was not offered");
    assert_eq!(post(d, PATH, &wants("a", 1)).await.status, 500, "no engine listens on that port");
    assert_eq!(post(d, PATH, &wants("a", p.port())).await.status, 200);
    assert_eq!(post(d, PATH, &wants("a", p.port())).await.status, 500, "the KV was read already");
    let stats = fleet.stats(1);
    assert_eq!((stats.transfers_in, stats.transfers_failed), (1, 3));
    idle(&fleet, 0).await;
    fleet.stop().await;
}

#[tokio::test]
async fn push_and_pull_engines_refuse_each_other() {
    let (pull, push) = (two().await, engines(VllmConnector::NixlPush).await);
    let params = prefill(push.addresses()[0], "mode", 50).await;
    assert_eq!(params["transfer_mode"], "push");
    let body = with_kv(completion("mode", 50, 4, false), &params);
    assert_eq!(post(push.addresses()[1], PATH, &body).await.status, 200);
    assert_eq!(push.stats(1).transfers_in, 1);
    let mut params = prefill(push.addresses()[0], "mode", 50).await;
    let body = with_kv(completion("mode", 50, 4, false), &params);
    let d = pull.addresses()[1];
    assert_eq!(post(d, PATH, &body).await.status, 200, "it is computed here");
    assert_eq!((pull.stats(1).transfers_in, pull.stats(1).prompt_computed), (0, 50));
    params["transfer_mode"] = json!("pull");
    let forged = post(d, PATH, &with_kv(completion("mode", 50, 4, false), &params)).await;
    assert_eq!((forged.status.as_u16(), pull.stats(1).transfers_failed), (500, 1));
}

#[tokio::test]
async fn the_shared_store_contains_only_stored_blocks() {
    let fleet = engines(VllmConnector::SharedStore).await;
    let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
    let alone = post(d, PATH, &completion("none", 100, 4, false)).await;
    assert_eq!(alone.status, 200);
    assert_eq!((fleet.stats(1).transfers_in, fleet.stats(1).prompt_computed), (0, 100));
    assert_eq!(post(p, PATH, &completion("kept", 100, 1, false)).await.status, 200);
    let decode = post(d, PATH, &completion("kept", 100, 4, false)).await;
    assert_eq!(decode.status, 200);
    let stats = fleet.stats(1);
    let bytes = 96 * config().profile.kv_bytes;
    assert_eq!((stats.transfers_in, stats.bytes_in, stats.prompt_computed), (1, bytes, 104));
    idle(&fleet, 1).await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_generation_first_leg_waits_for_its_context_until_the_timeout() {
    let kind = EmulatedEngine::Trtllm;
    let timeout = Seconds(0.2);
    let config = EmulatorConfig { kind, handshake_timeout: timeout, ..config() };
    let fleet = start(config).await.unwrap();
    let (c, g) = (fleet.addresses()[0], fleet.addresses()[1]);
    let info = get(c, "/server_info").await.json();
    let endpoint = &info["disaggregated_params"]["ctx_info_endpoint"][0];
    let leg = |kind: &str, id: u64, context: u64| {
        let mut body = completion("first", 50, 4, false);
        body["disaggregated_params"] = json!({
            "request_type": kind, "disagg_request_id": id, "ctx_request_id": context,
            "schedule_style": 1, "ctx_dp_rank": 0, "ctx_info_endpoint": endpoint,
        });
        body
    };
    let id = 1_u64 << 41;
    let generation = leg("generation_only", id, id);
    let context = leg("context_only", id, id);
    let (generated, computed) = tokio::join!(post(g, PATH, &generation), post(c, PATH, &context));
    assert_eq!((generated.status.as_u16(), computed.status.as_u16()), (200, 200));
    assert_eq!(fleet.stats(1).bytes_in, fleet.stats(0).bytes_out);
    assert_eq!(fleet.stats(1).transfers_in, 1);
    let lone = post(g, PATH, &leg("generation_only", id + 1, id + 1)).await;
    assert_eq!(lone.status, 500, "its context leg was not sent");
    let lone = post(c, PATH, &leg("context_only", id + 2, id + 2)).await;
    assert_eq!(lone.status, 500, "its generation leg was not sent");
    let unequal = post(g, PATH, &leg("generation_only", id + 3, id + 4)).await;
    assert_eq!(unequal.status, 400);
    idle(&fleet, 0).await;
    fleet.stop().await;
}
