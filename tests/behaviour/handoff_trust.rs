//! Hand-off members and headers from clients: refused by default, accepted by setting, and
//! restricted to an allow-list.

use crate::client::post;
use crate::client::send;
use crate::fake::{Act, Fake, chat_answer};
use crate::proxy::{Proxy, plain};

fn body(member: &str) -> String {
    format!("{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}],{member}}}")
}

const ELSEWHERE: &str =
    "\"kv_transfer_params\":{\"do_remote_prefill\":true,\"remote_host\":\"169.254.169.254\"}";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_make_an_engine_connect_anywhere() {
    let fake = Fake::start([], Act::Json(200, chat_answer("ok"))).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    for member in [
        ELSEWHERE,
        "\"kv\\u005ftransfer_params\":{\"remote_host\":\"h\"}",
        "\"bootstrap_host\":\"h\",\"bootstrap_room\":1",
        "\"disaggregated_params\":{\"request_type\":\"generation_only\"}",
        "\"ec_transfer_params\":{\"peer\":\"h\"}",
        "\"vllm_xargs\":{\"kv_transfer_params\":{\"remote_host\":\"h\"}}",
    ] {
        let answer = proxy.post("/v1/chat/completions", &body(member)).await;
        assert_eq!(answer.status, 400, "{member}: {}", answer.body);
    }
    assert!(fake.sent().is_empty());
    let answer = proxy.post("/v1/chat/completions", &body("\"kv_transfer_params\":null")).await;
    assert_eq!(answer.status, 200, "null is not a hand-off: {}", answer.body);

    let mut request = post("/v1/chat/completions", body("\"n\":1"));
    let forged = "___prefill_addr_169.254.169.254:1___decode_addr_10.0.0.1:2_0123";
    for (name, value) in [("x-request-id", forged), ("x-prefiller-host-port", "10.0.0.1:1")] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    assert_eq!(send(proxy.data, request).await.status, 200);
    let sent = fake.sent().pop().unwrap();
    assert_ne!(sent.headers["x-request-id"], forged, "connectors read addresses from such ids");
    assert!(!sent.headers.contains_key("x-prefiller-host-port"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_trusts_its_gateway_within_an_allow_list() {
    let fake = Fake::start([], Act::Json(200, chat_answer("ok"))).await;
    let top = "trust_client_handoff = true\nhandoff_hosts = [\"10.0.0.0/8\"]\n";
    let proxy = Proxy::start(top, &[plain("a", &fake)]).await;
    let near = ELSEWHERE.replace("169.254.169.254", "10.1.2.3");
    for (member, status) in [(ELSEWHERE, 400), (near.as_str(), 200)] {
        let answer = proxy.post("/v1/chat/completions", &body(member)).await;
        assert_eq!(answer.status, status, "{member}: {}", answer.body);
    }
    assert!(fake.sent()[0].json()["kv_transfer_params"]["remote_host"] == "10.1.2.3");
}
