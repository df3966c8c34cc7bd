//! tidegate in place of llm-d's pd-sidecar. docs/kubernetes/sidecar.md names the test of each row of its
//! conformance table.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use serde_json::json;

use crate::client::{Answer, get, post, send, within};
use crate::cluster::Cluster;
use crate::fake::{Act, Fake, chat_answer, chat_chunks, prefill_answer};
use crate::fleet::{Emulated, tokens_of};
use crate::proxy::{Engine, Proxy, RefusingAddress, chat, chat_with, vllm};

const NIXL: &str = "engine = \"vllm\"\nconnector = \"nixl\"";
const SGLANG: &str = "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole = \"decode\"";
/// Trusts the loopback address of the test's client.
const TRUSTED: &str = "[retry]\nattempts = 1\n[sidecar]\ntrusted_peers = [\"127.0.0.0/8\"]\n";

const TARGET: &str = "x-prefiller-host-port";

fn host(fake: &Fake) -> String {
    fake.url().trim_start_matches("http://").to_owned()
}

async fn with(top: &str, more: &'static str, own: &Fake) -> Proxy {
    let engines: [Engine; 1] = [vllm("local", own.url(), more)];
    Proxy::start(top, &engines).await
}

fn request(body: String, headers: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    let mut request = post("/v1/chat/completions", body);
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

async fn ask(proxy: &Proxy, headers: &[(&'static str, &str)]) -> Answer {
    send(proxy.data, request(chat(true), headers)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_target_both_stages_run_on_the_own_engine() {
    let own = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let proxy = with(TRUSTED, NIXL, &own).await;
    let answer = ask(&proxy, &[]).await;
    assert_eq!((answer.status.as_u16(), answer.body), (200, chat_chunks(3).concat()));
    assert_eq!(own.sent()[0].body, chat(true), "byte for byte");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_prefills_and_the_own_engine_decodes_with_its_hand_off() {
    let target = Fake::start([], Act::Json(200, prefill_answer())).await;
    let own = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let proxy = with(TRUSTED, NIXL, &own).await;
    let headers = [(TARGET, &*host(&target)), ("x-custom", "kept")];
    let answer =
        send(proxy.data, request(chat_with(true, &"word ".repeat(400), ",\"seed\":7"), &headers))
            .await;
    assert_eq!((answer.status.as_u16(), answer.body), (200, chat_chunks(3).concat()));
    let (prefill, decode) = (&target.sent()[0], &own.sent()[0]);
    for leg in [prefill, decode] {
        assert_eq!(
            (&leg.headers["x-custom"], &leg.json()["seed"]),
            (&"kept".parse().unwrap(), &7.into())
        );
        assert!(!leg.headers.contains_key(TARGET), "the header is not forwarded");
    }
    assert_eq!(prefill.headers["x-request-id"], decode.headers["x-request-id"]);
    let (prefill, decode) = (prefill.json(), decode.json());
    assert_eq!((&prefill["max_tokens"], &prefill["stream"]), (&1.into(), &false.into()));
    assert_eq!(prefill["kv_transfer_params"]["do_remote_decode"], true);
    let handed: serde_json::Value = serde_json::from_str(&prefill_answer()).unwrap();
    assert_eq!(decode["kv_transfer_params"], handed["kv_transfer_params"]);
    assert_eq!((&decode["max_tokens"], &decode["stream"]), (&16.into(), &true.into()));
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_and_non_streamed_answers_are_disaggregated() {
    let target = Fake::start([], Act::Json(200, prefill_answer())).await;
    let own = Fake::start([], Act::Json(200, chat_answer("ok"))).await;
    let proxy = with(TRUSTED, NIXL, &own).await;
    let mut request =
        post("/v1/completions", "{\"model\":\"m\",\"prompt\":\"a b c\",\"max_tokens\":4}");
    request.headers_mut().insert(TARGET, host(&target).parse().unwrap());
    assert_eq!(send(proxy.data, request).await.status, 200);
    assert_eq!(target.sent()[0].json()["max_tokens"], 1);
    assert!(own.sent()[0].json()["kv_transfer_params"].is_object());
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_target_of_a_list_is_used() {
    let target = Fake::start([], Act::Json(200, prefill_answer())).await;
    let own = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let proxy = with(TRUSTED, NIXL, &own).await;
    let refusing = RefusingAddress::new();
    let list = format!("{}, {}", host(&target), refusing.address);
    assert_eq!(ask(&proxy, &[(TARGET, &list)]).await.status, 200);
    assert_eq!(target.sent().len(), 1);
    let second = refusing.address.to_string();
    assert_eq!(ask(&proxy, &[(TARGET, &host(&target)), (TARGET, &second)]).await.status, 200);
    assert_eq!(target.sent().len(), 2, "several lines are a list too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_outside_the_allow_list_gets_403_and_no_connection() {
    let target = Fake::start([], Act::Json(200, prefill_answer())).await;
    let own = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let top = format!("{TRUSTED}prefill_hosts = [\"10.0.0.0/8\"]\n");
    let proxy = with(&top, NIXL, &own).await;
    let answer = ask(&proxy, &[(TARGET, &host(&target))]).await;
    assert_eq!(answer.status, 403, "{}", answer.body);
    assert_eq!(answer.json()["error"]["code"], "prefill_target_not_allowed");
    assert!(target.sent().is_empty() && own.sent().is_empty());
    assert_eq!(ask(&proxy, &[]).await.status, 200);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_headers_of_untrusted_peers_are_removed() {
    let target = Fake::start([], Act::Json(200, prefill_answer())).await;
    let own = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let untrusted = "[sidecar]\ntrusted_peers = [\"10.0.0.0/8\"]\n";
    let names = [
        "x-prefiller-host-port",
        "x-encoder-hosts-ports",
        "x-data-parallel-host-port",
        "x-kv-cache-source-host-port",
        "x-gateway-destination-endpoint",
        "x-llm-d-inference-objective",
        "x-gateway-inference-objective",
        "x-llm-d-inference-fairness-id",
        "x-gateway-inference-fairness-id",
        "x-llm-d-model-name-rewrite",
        "x-gateway-model-name-rewrite",
        "x-llm-d-slo-ttft-ms",
        "x-slo-ttft-ms",
        "target-pod",
    ];
    for top in [untrusted, ""] {
        let proxy = with(top, NIXL, &own).await;
        let value = host(&target);
        let headers: Vec<(&str, &str)> = names.iter().map(|name| (*name, value.as_str())).collect();
        assert_eq!(ask(&proxy, &headers).await.status, 200);
        let sent = own.sent().pop().unwrap();
        for name in names {
            assert!(!sent.headers.contains_key(name), "{name} reached the engine");
        }
        assert!(target.sent().is_empty(), "an untrusted peer sets no prefill target");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transient_failure_of_the_prefill_is_retried() {
    let busy = || Act::Json(503, "{\"error\":{\"message\":\"busy\"}}".into());
    let target = Fake::start([busy(), Act::Drop], Act::Json(200, prefill_answer())).await;
    let own = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let top = format!("{TRUSTED}prefill_retries = 2\nprefill_retry_backoff_seconds = 0.01\n");
    let proxy = with(&top, NIXL, &own).await;
    let answer = ask(&proxy, &[(TARGET, &host(&target))]).await;
    assert_eq!(answer.body, chat_chunks(3).concat());
    assert_eq!(target.sent().len(), 3);
    assert!(own.sent()[0].json()["kv_transfer_params"].is_object(), "with the hand-off");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_permanent_prefill_failure_the_own_engine_prefills() {
    let own = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let proxy = with(TRUSTED, NIXL, &own).await;
    let broken = Fake::start([], Act::Json(500, "{\"error\":{\"message\":\"m\"}}".into())).await;
    let refusing = RefusingAddress::new().address.to_string();
    for target in [host(&broken), refusing] {
        let answer = ask(&proxy, &[(TARGET, &target)]).await;
        assert_eq!((answer.status.as_u16(), answer.body), (200, chat_chunks(3).concat()));
        let sent = own.sent().pop().unwrap();
        assert_eq!(sent.body, chat(true), "the client's own request");
    }
    let page = send(proxy.admin, get("/metrics")).await.body;
    let counted = "tidegate_leg_failures_total{backend=\"named-prefill-target\",leg=\"prefill\"} 2";
    assert!(page.contains(counted), "{page}");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_error_of_the_target_is_forwarded() {
    let refused =
        "{\"error\":{\"message\":\"too long\",\"type\":\"BadRequestError\",\"code\":400}}";
    let target = Fake::start([], Act::Json(400, refused.into())).await;
    let own = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let proxy = with(TRUSTED, NIXL, &own).await;
    let answer = ask(&proxy, &[(TARGET, &host(&target))]).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (400, refused));
    assert!(own.sent().is_empty());
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sglangs_legs_run_concurrently_with_a_rendezvous_at_the_target() {
    let target = Fake::start([], Act::Json(200, chat_answer(""))).await;
    let own = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let proxy = with(TRUSTED, SGLANG, &own).await;
    let answer = ask(&proxy, &[(TARGET, &host(&target))]).await;
    assert_eq!((answer.status.as_u16(), answer.body), (200, chat_chunks(3).concat()));
    let (prefill, decode) = (target.sent()[0].json(), own.sent()[0].json());
    for member in ["bootstrap_host", "bootstrap_port", "bootstrap_room"] {
        assert_eq!(prefill[member], decode[member], "{member}");
        assert!(!decode[member].is_null(), "{member}");
    }
    assert_eq!(decode["bootstrap_host"], "127.0.0.1");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_answered_on_the_data_port() {
    let own = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let proxy = with(TRUSTED, NIXL, &own).await;
    assert_eq!(send(proxy.data, get("/health")).await.status, 200);
    assert_eq!(send(proxy.data, get("/v1/models")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_pool_gets_503_with_the_reason() {
    let refusing = RefusingAddress::new();
    let proxy = Proxy::start_cold(
        TRUSTED,
        &[vllm(
            "local",
            refusing.url(),
            "engine = \"vllm\"\nconnector = \"nixl\"\nmodels = [\"m\"]",
        )],
    );
    let refused = async {
        loop {
            let answer = ask(&proxy, &[]).await;
            if answer.headers.contains_key("x-llm-d-request-dropped-reason") {
                return answer;
            }
        }
    };
    let answer = within(refused).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.headers["x-llm-d-request-dropped-reason"], "rejected-no-endpoints");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ready_pods_of_the_inference_pool_are_the_allow_list() {
    let cluster = Cluster::fake().await;
    let target = Fake::start([], Act::Json(200, prefill_answer())).await;
    let own = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let port = host(&target).rsplit(':').next().unwrap().parse().unwrap();
    cluster.pool("llama", json!({"app": "vllm"}), &[port]).await;
    let api = cluster.settings.api_server.as_ref().unwrap();
    let top =
        format!("{TRUSTED}inference_pool = \"llm/llama\"\n[kubernetes]\napi_server = \"{api}\"\n");
    let proxy = with(&top, NIXL, &own).await;
    let headers = host(&target);
    let status = async || ask(&proxy, &[(TARGET, &headers)]).await.status.as_u16();
    // 503 until the model is discovered.
    within(async { while status().await == 503 {} }).await;
    assert_eq!(status().await, 403, "no pod has that address");
    cluster.pod("p-0", "127.0.0.1", json!({"app": "vllm"})).await;
    let allowed = async { while status().await == 403 {} };
    within(allowed).await;
    assert_eq!(status().await, 200);
    cluster.delete("p-0").await;
    let gone = async { while status().await == 200 {} };
    within(gone).await;
    assert_eq!(status().await, 403);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kv_cache_moves_from_the_target_to_the_own_engine() {
    let fleet = Emulated::start(2).await;
    let proxy = Proxy::start(TRUSTED, &[vllm("local", fleet.url(1), NIXL)]).await;
    for stream in [true, false] {
        let body = fleet.chat(stream, 600, 12);
        let target = fleet.address(0).to_string();
        let answer = send(proxy.data, request(body.clone(), &[(TARGET, &target)])).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let alone = send(fleet.address(0), post("/v1/chat/completions", body)).await;
        assert_eq!(tokens_of(&answer), tokens_of(&alone), "equal to one engine alone");
    }
    let (target, own) = (fleet.stats(0), fleet.stats(1));
    assert_eq!((own.transfers_in, own.recomputes, own.transfers_failed), (2, 0, 0));
    assert_eq!(target.leases_expired, 0);
    proxy.settles().await;
}
