//! Client disconnects, engine failures, and routes that do not generate.

use http::Method;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::net::TcpStream;

use super::client::*;
use crate::{EmulatedEngine, EmulatorConfig, start};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn a_disconnect_frees_the_sequence() {
    let fleet = two().await;
    let address = fleet.addresses()[0];
    let endless = |stream| completion("left", 1000, 100_000, stream).to_string();
    let mut streaming = open(address, Method::POST, PATH, &[], endless(true)).await.unwrap();
    assert!(streaming.body.frame().await.unwrap().is_ok());
    assert!(fleet.stats(0).kv_used > 1000);
    drop(streaming);
    idle(&fleet, 0).await;
    assert_eq!((fleet.stats(0).aborts, fleet.stats(0).finished), (1, 0));

    let body = endless(false);
    let asked = async move { open(address, Method::POST, PATH, &[], body).await.map(|_| ()) };
    let whole = tokio::spawn(asked);
    until("it runs", || fleet.stats(0).running == 1).await;
    whole.abort();
    whole.await.unwrap_err();
    idle(&fleet, 0).await;
    assert_eq!(fleet.stats(0).aborts, 2);
    fleet.stop().await;
}

#[tokio::test]
async fn a_killed_engine_cuts_its_streams_and_refuses_connections() {
    let mut fleet = two().await;
    let address = fleet.addresses()[0];
    let body = completion("cut", 10, 100_000, true).to_string();
    let mut streaming = open(address, Method::POST, PATH, &[], body).await.unwrap();
    assert!(streaming.body.frame().await.unwrap().is_ok());
    fleet.kill(0).await;
    let rest = (&mut streaming.body).collect().await;
    assert!(rest.is_err(), "the stream is cut without an end");
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(get(fleet.addresses()[1], "/health").await.status, 200);
    fleet.revive(0).await.unwrap();
    assert_eq!(get(address, "/health").await.status, 200);
    fleet.stop().await;
}

#[tokio::test]
async fn plain_engines_ignore_hand_offs() {
    let fleet = start(EmulatorConfig { kind: EmulatedEngine::Plain, ..config() }).await.unwrap();
    let address = fleet.addresses()[0];
    assert!(prefill(address, "plain", 50).await.is_null());
    let params = json!({
        "do_remote_prefill": true, "remote_engine_id": "e", "remote_request_id": "r",
        "remote_host": "127.0.0.1", "remote_port": 1,
    });
    let answer = post(address, PATH, &with_kv(completion("plain", 50, 4, false), &params)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(fleet.stats(0).transfers_failed, 0);
    fleet.stop().await;
}

#[tokio::test]
async fn a_full_queue_is_a_503() {
    let fleet = start(EmulatorConfig { max_queued: Some(0), ..config() }).await.unwrap();
    let answer = post(fleet.addresses()[0], PATH, &completion("busy", 10, 4, false)).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["error"]["code"], 503);
    fleet.stop().await;
}

#[tokio::test]
async fn the_other_routes_answer_as_vllm_does() {
    let fleet = two().await;
    let address = fleet.addresses()[0];
    assert_eq!(get(address, "/health").await.text, "");
    assert_eq!(get(address, "/version").await.text, "{\"version\":\"0.32.0\"}");
    assert_eq!(get(address, "/load").await.json(), json!({ "server_load": 0 }));
    let models = get(address, "/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][0]["max_model_len"], 131_072);
    let tokens = post(address, "/tokenize", &json!({ "model": "tiny", "prompt": "12345" })).await;
    let tokens = tokens.json();
    assert_eq!(tokens["count"], 2);
    let text = post(address, "/detokenize", &json!({ "tokens": tokens["tokens"] })).await.json();
    assert_eq!(text["prompt"], "12345");
    assert_eq!(get(address, "/v1/nothing").await.status, 404);
    assert_eq!(get(address, PATH).await.status, 405);
    assert_eq!(post(address, PATH, &json!({ "model": "nope", "prompt": "a" })).await.status, 404);
    fleet.stop().await;
}

#[tokio::test]
async fn metrics_have_vllms_names_and_separate_transferred_from_computed_tokens() {
    let fleet = two().await;
    let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
    let params = prefill(p, "m", 100).await;
    post(d, PATH, &with_kv(completion("m", 100, 4, false), &params)).await;
    let page = get(d, "/metrics").await.text;
    let bytes = (100 * config().profile.kv_bytes) as f64;
    for row in [
        format!("vllm:nixl_bytes_transferred_sum{{engine=\"0\",model_name=\"tiny\"}} {bytes:?}"),
        "vllm:prompt_tokens_by_source_total{engine=\"0\",model_name=\"tiny\",source=\"external_kv_transfer\"} 100.0".to_owned(),
        "vllm:prompt_tokens_by_source_total{engine=\"0\",model_name=\"tiny\",source=\"local_compute\"} 0.0".to_owned(),
        "vllm:nixl_num_failed_transfers_total{engine=\"0\",model_name=\"tiny\"} 0.0".to_owned(),
        "vllm:generation_tokens_total{engine=\"0\",model_name=\"tiny\"} 4.0".to_owned(),
        "vllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} 0.0".to_owned(),
    ] {
        assert!(page.lines().any(|line| line == row), "{row}\n{page}");
    }
    fleet.stop().await;
}
