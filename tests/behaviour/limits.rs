//! Limits on connections and on slow clients.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{get, h2_without_window, post, send, until, within};
use crate::fake::{Act, Fake, chat_answer, chat_chunks};
use crate::field::RawClient;
use crate::proxy::{Proxy, chat, plain};

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn connections_per_address_are_limited() {
    let fake = Fake::start([], Act::Json(200, chat_answer("ok"))).await;
    let top = "connections_per_address_max = 2\n";
    let proxy = Proxy::start_cold(top, &[plain("a", &fake)]);
    until("it listens", || std::net::TcpStream::connect(proxy.admin).is_ok()).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut client = RawClient::connect(proxy.data).await;
        client.send(HEALTH).await;
        client.answer().await;
        open.push(client);
    }
    let mut third = RawClient::connect(proxy.data).await;
    let refused = third.answer().await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    open.pop();
    // The proxy soon detects the closed connection.
    within(async {
        loop {
            let mut client = TcpStream::connect(proxy.data).await.unwrap();
            client.write_all(HEALTH).await.ok();
            let mut head = [0; 12];
            if client.read_exact(&mut head).await.is_ok() && head.ends_with(b"200") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let metrics = send(proxy.admin, get("/metrics")).await.body;
    assert!(metrics.contains("tidegate_connections_refused_total{limit=\"address\"}"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_body_is_answered_408() {
    let fake = Fake::start([], Act::Json(200, chat_answer("ok"))).await;
    let proxy = Proxy::start("keepalive_seconds = 0.3\n", &[plain("a", &fake)]).await;
    for framing in ["content-length: 50\r\n\r\n{", "transfer-encoding: chunked\r\n\r\n5\r\n{"] {
        let mut client = RawClient::connect(proxy.data).await;
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\n";
        client.send(format!("{head}{framing}").as_bytes()).await;
        assert_eq!(client.answer().await.status, 408, "{framing}");
    }
    assert!(fake.sent().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_h2_connection_without_streams_is_closed() {
    let fake = Fake::start([], Act::Json(200, chat_answer("ok"))).await;
    let proxy = Proxy::start("keepalive_seconds = 0.2\n", &[plain("a", &fake)]).await;
    let mut client = TcpStream::connect(proxy.data).await.unwrap();
    // Only the preface and an empty SETTINGS frame.
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut all = Vec::new();
    within(client.read_to_end(&mut all)).await.unwrap();
    assert!(all.len() > 9, "SETTINGS and GOAWAY frames before the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_h2_client_that_stops_reading_loses_its_stream() {
    let fake = Fake::start([], Act::Hang(chat_chunks(4))).await;
    let proxy = Proxy::start("client_stall_seconds = 0.4\n", &[plain("a", &fake)]).await;
    let (mut sender, driver) = h2_without_window(proxy.data).await;
    let mut request = post("/v1/chat/completions", chat(true));
    *request.uri_mut() = "http://test/v1/chat/completions".parse().unwrap();
    let held = sender.send_request(request).await.unwrap();
    until("the engine serves it", || fake.hanging() == 1).await;
    until("its engine is left", || fake.hanging() == 0).await;
    proxy.settles().await;
    drop((held, sender));
    driver.abort();
}
