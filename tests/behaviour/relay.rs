//! Relayed content: bytes, headers, unknown fields, chunks.

use crate::client::{open, post, send};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::proxy::{Proxy, chat, chat_with, plain};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_an_edit_is_forwarded_byte_for_byte() {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let body = "{ \"messages\" : [ {\"role\":\"user\",\"content\":\"h\\u00e9\"} ] ,\n \"model\":\"m\", \
                \"x_unknown\": 1.50e1, \"stream\" : false }";
    let answer = proxy.post("/v1/chat/completions", body).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, chat_answer("hello"));
    assert_eq!(fake.sent()[0].body, body);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_forwarded_in_both_directions_with_the_request_id() {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let mut request = post("/v1/chat/completions?x=1", chat(false));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (name, value) in [
        ("authorization", "Bearer client-key"),
        ("x-custom", "kept"),
        ("x-request-id", "my-request-7"),
        ("traceparent", trace),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = send(proxy.data, request).await;
    let sent = &fake.sent()[0];
    assert_eq!(sent.headers["authorization"], "Bearer client-key");
    assert_eq!(sent.headers["x-custom"], "kept");
    assert_eq!(sent.headers["x-request-id"], "my-request-7");
    let hop = sent.headers["traceparent"].to_str().unwrap();
    assert!(hop.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && hop != trace, "{hop}");
    assert_eq!(answer.headers["x-request-id"], "my-request-7");
    assert_eq!(answer.headers["x-engine"], "fake");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_chunk_is_forwarded_before_the_next_arrives() {
    let fake = Fake::start([], Act::Hang(chat_chunks(3)[..3].to_vec())).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let mut open = open(proxy.data, post("/v1/chat/completions", chat(true))).await.unwrap();
    let mut text = String::new();
    while !text.contains("w1") {
        // The engine hangs after w1: a proxy that buffered would never relay it.
        let chunk = open.chunk().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert_eq!(text, chat_chunks(3)[..3].concat());
    drop(open);
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_arrives_as_the_engine_wrote_it() {
    let chunks = chat_chunks(20);
    let fake = Fake::start([], Act::Chunks(chunks.clone())).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let answer = proxy.post("/v1/chat/completions", &chat(true)).await;
    assert_eq!(answer.body, chunks.concat());
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    proxy.settles().await;
    let page = send(proxy.admin, crate::client::get("/metrics")).await.body;
    for name in [
        "gen_ai_server_time_to_first_token_seconds_count{gen_ai_request_model=\"m\"",
        "gen_ai_server_time_per_output_token_seconds_count{",
        "gen_ai_server_request_duration_seconds_count{",
        "gen_ai_client_token_usage_count{",
        "tidegate_backend_role{",
        "tidegate_plan_duration_seconds_count",
        "tidegate_queue_requests",
        "tidegate_backend_streams{",
        "tidegate_ttft_observed_over_predicted",
    ] {
        assert!(page.contains(name), "{name} is not in\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_off_in_an_answer_is_redacted_unless_the_client_asked() {
    let leaky = crate::fake::prefill_answer();
    let fake = Fake::start([], Act::Json(200, leaky.clone())).await;
    let proxy = Proxy::start("trust_client_handoff = true\n", &[plain("a", &fake)]).await;
    let answer = proxy.post("/v1/chat/completions", &chat(false)).await;
    assert!(answer.json()["kv_transfer_params"].is_null(), "{}", answer.body);
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "x");
    let body = chat_with(false, "hi", ",\"kv_transfer_params\":{\"do_remote_decode\":true}");
    let answer = proxy.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.body, leaky, "a client that drives the hand-off itself gets it");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_known_paths_pass_through_and_models_are_merged() {
    let a = Fake::start([], Act::Json(200, "{\"tokens\":[1]}".into())).await;
    let b = Fake::start([], Act::Json(200, "{\"tokens\":[1]}".into())).await;
    let proxy = Proxy::start("", &[plain("a", &a), plain("b", &b)]).await;
    let answer = proxy.post("/tokenize", "{\"model\":\"m\",\"prompt\":\"x\"}").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "{\"tokens\":[1]}"));
    let models = send(proxy.data, crate::client::get("/v1/models")).await.json();
    assert_eq!(models["data"].as_array().unwrap().len(), 1, "{models}");
    assert_eq!(models["data"][0]["id"], "m");
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h2c_clients_are_served() {
    use http_body_util::BodyExt;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let stream = tokio::net::TcpStream::connect(proxy.data).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let driver = tokio::spawn(connection);
    let mut request = post("/v1/chat/completions", chat(false));
    *request.uri_mut() = format!("http://{}/v1/chat/completions", proxy.data).parse().unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, chat_answer("hello"));
    let uri = format!("http://{}/v1/models", proxy.data);
    let head = hyper::Request::head(uri).body(http_body_util::Full::default()).unwrap();
    let answer = sender.send_request(head).await.unwrap();
    let length: u64 = answer.headers()["content-length"].to_str().unwrap().parse().unwrap();
    assert!(answer.status() == 200 && length > 0, "{answer:?}");
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(body.is_empty(), "a body after HEAD is a protocol error");
    driver.abort();
    proxy.settles().await;
}
