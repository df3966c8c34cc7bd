//! Minimal HTTP client for the tests.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tidegate_sim::Profile;
use tidegate_types::Seconds;
use tokio::net::TcpStream;

use crate::{EmulatorConfig, RunningEmulator, start};

pub struct TestAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl TestAnswer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{}", self.text))
    }

    /// Returns the events of a stream, without `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let data = self.text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    /// Returns the text of answer `index`, streamed or not.
    pub fn words(&self, index: u64) -> String {
        let events = if self.text.starts_with("data:") { self.events() } else { vec![self.json()] };
        let choices = events.iter().filter_map(|event| event["choices"].as_array()).flatten();
        let texts = choices.filter(|choice| choice["index"] == index).filter_map(|choice| {
            choice["text"]
                .as_str()
                .or(choice["delta"]["content"].as_str())
                .or(choice["message"]["content"].as_str())
        });
        texts.collect()
    }
}

/// Response whose body is still in transit; dropping it closes the connection.
pub struct Open {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Incoming,
    _driver: Driver,
}

/// Drives the connection; dropping it closes the connection.
pub struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub fn config() -> EmulatorConfig {
    EmulatorConfig {
        count: 2,
        profile: Profile::named("fast").unwrap(),
        model: "tiny".to_owned(),
        handshake_timeout: Seconds(0.05),
        ..EmulatorConfig::default()
    }
}

pub async fn two() -> RunningEmulator {
    start(config()).await.unwrap()
}

pub async fn open(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> Result<Open, hyper::Error> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let driver = Driver(tokio::spawn(async move { connection.await.unwrap_or(()) }));
    let mut request = Request::builder().method(method).uri(path).header("host", "engine");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body))).unwrap();
    let (parts, body) = sender.send_request(request).await?.into_parts();
    Ok(Open { status: parts.status, headers: parts.headers, body, _driver: driver })
}

pub async fn send(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> TestAnswer {
    let mut open = open(address, method, path, headers, body).await.unwrap();
    let text = (&mut open.body).collect().await.unwrap().to_bytes();
    TestAnswer {
        status: open.status,
        headers: std::mem::take(&mut open.headers),
        text: String::from_utf8(text.to_vec()).unwrap(),
    }
}

pub async fn post(address: SocketAddr, path: &str, body: &Value) -> TestAnswer {
    send(address, Method::POST, path, &[], body.to_string()).await
}

pub async fn get(address: SocketAddr, path: &str) -> TestAnswer {
    send(address, Method::GET, path, &[], String::new()).await
}

/// Returns a completion request of `tokens` prompt tokens; `name` makes the prompt unique.
pub fn completion(name: &str, tokens: usize, output: u64, stream: bool) -> Value {
    let prompt = format!("{name:x<width$}", width = 4 * tokens);
    json!({ "model": "tiny", "prompt": prompt, "max_tokens": output, "stream": stream })
}

/// Same, with hand-off parameters.
pub fn with_kv(mut body: Value, params: &Value) -> Value {
    body["kv_transfer_params"] = params.clone();
    body
}

/// Runs the prefill leg of such a completion; returns its hand-off.
pub async fn prefill(address: SocketAddr, name: &str, tokens: usize) -> Value {
    let ask =
        json!({ "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null });
    let body = with_kv(completion(name, tokens, 1, false), &ask);
    let mut answer = post(address, "/v1/completions", &body).await.json();
    answer["kv_transfer_params"].take()
}

/// Waits until a condition that is not signalled holds.
pub async fn until(what: &str, happened: impl Fn() -> bool) {
    let poll = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), poll).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Waits until an engine has no request left.
pub async fn idle(running: &RunningEmulator, engine: usize) {
    until("all memory is released", || {
        let now = running.stats(engine);
        (now.open, now.running, now.waiting, now.held, now.kv_used) == (0, 0, 0, 0, 0)
    })
    .await;
}
