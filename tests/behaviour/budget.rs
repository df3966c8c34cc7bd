//! Memory budget of request bodies: requests beyond it get 503 before the body is read, and ended
//! requests release their share.

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Answer, get, leave_later, post, send, until, within};
use crate::fake::{Act, Fake, chat_answer, prefill_answer};
use crate::proxy::{DECODE, PREFILL, Proxy, SPLIT, chat_with, plain, vllm};

const CHAT: &str = "/v1/chat/completions";
const ONE_MIB: &str = "body_budget_bytes = 1048576\n";

/// A request with a body of 600 KiB and a short prompt.
fn large() -> String {
    chat_with(false, "word", &format!(",\"padding\":\"{}\"", "x".repeat(600 << 10)))
}

async fn gauge(proxy: &Proxy, name: &str) -> f64 {
    let page = send(proxy.admin, get("/metrics")).await.body;
    let line = page.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    line.trim().parse().unwrap()
}

async fn holds(proxy: &Proxy, bytes: std::ops::RangeInclusive<usize>) {
    until("the bodies held", || bytes.contains(&proxy.body_bytes())).await;
    let shown = gauge(proxy, "tidegate_body_held_bytes ").await as usize;
    assert!(bytes.contains(&shown), "{shown}");
}

fn is_refused(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.body);
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.json()["error"]["code"], "body_budget");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_budget_gets_503_until_another_is_released() {
    let fake = Fake::start([Act::Silent], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start(ONE_MIB, &[plain("a", &fake)]).await;
    assert_eq!(gauge(&proxy, "tidegate_body_budget_bytes ").await, 1_048_576.0);
    let first = leave_later(proxy.data, post(CHAT, large()));
    until("the engine has the first", || fake.hanging() == 1).await;
    holds(&proxy, 600 << 10..=601 << 10).await;
    for _ in 0..2 {
        is_refused(&proxy.post(CHAT, &large()).await);
    }
    let answer = proxy.post(CHAT, &chat_with(false, "short", "")).await;
    assert_eq!(answer.status, 200, "a small one still fits: {}", answer.body);
    first.abort();
    holds(&proxy, 0..=0).await;
    for _ in 0..3 {
        let answer = proxy.post(CHAT, &large()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    proxy.settles().await;
    holds(&proxy, 0..=0).await;
}

/// Sends a head and part of a body, and reads to the end of the connection.
async fn raw(proxy: &Proxy, head: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(proxy.data).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: h\r\n{head}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // The proxy may close before it has read everything.
    stream.write_all(body).await.ok();
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.ok();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_body_is_refused_before_it_is_read_and_a_chunked_one_as_it_grows() {
    let fake = Fake::start([Act::Silent], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start(ONE_MIB, &[plain("a", &fake)]).await;
    let first = leave_later(proxy.data, post(CHAT, large()));
    until("the engine has the first", || fake.hanging() == 1).await;
    let announced = "content-length: 614400\r\n";
    let continued = "content-length: 614400\r\nexpect: 100-continue\r\n";
    let chunk = format!("80000\r\n{}\r\n", "x".repeat(0x80000));
    for (head, body) in
        [(announced, ""), (continued, ""), ("transfer-encoding: chunked\r\n", &*chunk)]
    {
        let answer = raw(&proxy, head, body.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{head}: {answer}");
        let answer = answer.to_lowercase();
        assert!(answer.contains("\r\nretry-after: 1\r\n"), "{head}: {answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{head}: {answer}");
    }
    first.abort();
    holds(&proxy, 0..=0).await;
    let body = large();
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let head = "transfer-encoding: chunked\r\nconnection: close\r\n";
    let answer = raw(&proxy, head, chunks.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // Clients that disconnect within a body release its budget.
    for head in [announced, "transfer-encoding: chunked\r\n"] {
        let mut stream = TcpStream::connect(proxy.data).await.unwrap();
        let text = format!("POST {CHAT} HTTP/1.1\r\nhost: h\r\n{head}\r\n1000\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.write_all(&[b'x'; 2048]).await.unwrap();
        until("part of it is held", || proxy.body_bytes() > 0).await;
        drop(stream);
        holds(&proxy, 0..=0).await;
    }
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_bodies_are_charged_to_the_budget_with_and_without_a_length() {
    let fake = Fake::start([Act::Silent], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start(ONE_MIB, &[plain("a", &fake)]).await;
    let first = leave_later(proxy.data, post(CHAT, large()));
    until("the engine has the first", || fake.hanging() == 1).await;
    let stream = TcpStream::connect(proxy.data).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    let driver = tokio::spawn(connection);
    let uri: http::Uri = format!("http://{}{CHAT}", proxy.data).parse().unwrap();
    let mut status = async |has_length: bool| {
        let bytes = Bytes::from(large());
        // Frames without an announced length.
        let body = match has_length {
            true => Full::new(bytes).boxed_unsync(),
            false => {
                let frame = Ok::<_, Infallible>(Frame::data(bytes));
                StreamBody::new(tokio_stream::once(frame)).boxed_unsync()
            }
        };
        let request = http::Request::post(uri.clone()).body(body).unwrap();
        let answer = within(sender.send_request(request)).await.unwrap();
        let retry = answer.headers().get("retry-after").is_some_and(|after| after == "1");
        let status = answer.status();
        within(answer.into_body().collect()).await.ok();
        (status.as_u16(), retry)
    };
    for has_length in [true, false] {
        assert_eq!(status(has_length).await, (503, true), "{has_length}");
    }
    first.abort();
    holds(&proxy, 0..=0).await;
    for has_length in [true, false] {
        assert_eq!(status(has_length).await, (200, false), "{has_length}");
    }
    driver.abort();
    proxy.settles().await;
    holds(&proxy, 0..=0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnects_while_large_bodies_wait_for_filters_release_everything() {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start("", &[plain("a", &fake)]).await;
    let clients: Vec<_> = (0..24).map(|_| leave_later(proxy.data, post(CHAT, large()))).collect();
    until("bodies are held", || proxy.body_bytes() > 0).await;
    for client in &clients[..12] {
        client.abort();
    }
    for client in clients {
        // Half of the requests were aborted.
        within(client).await.ok();
    }
    proxy.settles().await;
    holds(&proxy, 0..=0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_larger_than_the_whole_budget_is_too_large() {
    let fake = Fake::start([], Act::Json(200, chat_answer("hello"))).await;
    let proxy = Proxy::start("body_budget_bytes = 524288\n", &[plain("a", &fake)]).await;
    let body = large();
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for (head, body) in
        [("content-length: 614500\r\n", ""), ("transfer-encoding: chunked\r\n", &*chunks)]
    {
        let answer = raw(&proxy, head, body.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{head}: {answer}");
        assert!(answer.contains("larger than 524288 bytes"), "{head}: {answer}");
    }
    let stream = TcpStream::connect(proxy.data).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://{}{CHAT}", proxy.data);
    let request = http::Request::post(uri).body(Full::new(Bytes::from(large()))).unwrap();
    assert_eq!(within(sender.send_request(request)).await.unwrap().status(), 413);
    proxy.settles().await;
    holds(&proxy, 0..=0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_request_runs_colocated_if_its_edited_copies_exceed_the_budget() {
    for (budget, splits) in [(1 << 20, false), (4 << 20, true)] {
        let answers = || Fake::start([], Act::Json(200, prefill_answer()));
        let (a, b) = (answers().await, answers().await);
        let top = format!("body_budget_bytes = {budget}\n{SPLIT}");
        let engines = [vllm("a", a.url(), PREFILL), vllm("b", b.url(), DECODE)];
        let proxy = Proxy::start(&top, &engines).await;
        let padding = format!(",\"padding\":\"{}\"", "x".repeat(600 << 10));
        let body = chat_with(false, &"word ".repeat(400), &padding);
        let answer = proxy.post(CHAT, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let sent: Vec<_> = a.sent().into_iter().chain(b.sent()).collect();
        let legs = sent.iter().filter(|sent| sent.json().get("kv_transfer_params").is_some());
        assert_eq!((sent.len(), legs.count()), if splits { (2, 2) } else { (1, 0) }, "{budget}");
        proxy.settles().await;
        holds(&proxy, 0..=0).await;
    }
}
