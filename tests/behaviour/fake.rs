//! Scripted engine that records the requests it receives.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Request as received.
#[derive(Clone, Debug)]
pub struct Sent {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Sent {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Action for the next request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Answers with a status and a JSON body.
    Json(u16, String),
    /// Like `Json`, after a delay.
    Slow(u16, String),
    /// Streams these chunks, one write each, then ends.
    Chunks(Vec<String>),
    /// Streams these chunks as lines of JSON, as Ollama does.
    Lines(Vec<String>),
    /// Like `Lines`, then breaks the connection.
    BreakLines(Vec<String>),
    /// Streams these chunks, then breaks the connection.
    Break(Vec<String>),
    /// Streams these chunks, then stalls.
    Hang(Vec<String>),
    /// Breaks the connection without an answer.
    Drop,
    /// Never answers.
    Silent,
}

/// Scripted engine that serves model `m`.
#[derive(Clone)]
pub struct Fake {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    script: Arc<Mutex<VecDeque<Act>>>,
    default: Act,
    sent: Mutex<Vec<Sent>>,
    /// Answers to probes by path; probes are not recorded as requests.
    pages: Mutex<HashMap<String, (u16, String)>>,
    /// Number of probes by path.
    counts: Mutex<HashMap<String, usize>>,
    /// Number of exchanges that currently hang; a client disconnect ends its own.
    hanging: AtomicUsize,
    /// Whether `/tokenize` runs the script.
    scripts_tokenize: AtomicBool,
    /// Whether probes of all kinds are left unanswered.
    probes_hang: AtomicBool,
    /// Tasks that each serve a connection.
    connections: Mutex<Vec<JoinHandle<()>>>,
}

/// Guard held while an exchange hangs.
struct Hanging(Arc<State>);

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.hanging.fetch_sub(1, SeqCst);
    }
}

impl Fake {
    /// Starts an engine that runs `script`, then repeats `default`.
    pub async fn start(script: impl IntoIterator<Item = Act>, default: Act) -> Fake {
        let script = Arc::new(Mutex::new(script.into_iter().collect()));
        Fake::listen(script, default).await
    }

    async fn listen(script: Arc<Mutex<VecDeque<Act>>>, default: Act) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script,
            default,
            sent: Mutex::default(),
            pages: Mutex::default(),
            counts: Mutex::default(),
            hanging: AtomicUsize::new(0),
            scripts_tokenize: AtomicBool::new(false),
            probes_hang: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let state = Arc::clone(&shared);
                let service = service_fn(move |request| answer(Arc::clone(&state), request));
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                let task = tokio::spawn(async move { drop(serving.await) });
                shared.connections.lock().unwrap().push(task);
            }
        });
        Fake { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Starts engines that share one script, in the order in which they receive requests.
    pub async fn start_sharing(
        script: impl IntoIterator<Item = Act>,
        default: Act,
        n: usize,
    ) -> Vec<Fake> {
        let first = Fake::start(script, default).await;
        let mut fakes = vec![first];
        while fakes.len() < n {
            let script = Arc::clone(&fakes[0].state.script);
            let default = fakes[0].state.default.clone();
            fakes.push(Fake::listen(script, default).await);
        }
        fakes
    }

    /// Returns the recorded requests, without probes.
    pub fn sent(&self) -> Vec<Sent> {
        self.state.sent.lock().unwrap().clone()
    }

    /// Sets the content of its /metrics page.
    pub fn set_metrics(&self, page: &str) {
        self.set_answer("/metrics", 200, page);
    }

    /// Sets the answer at a path.
    pub fn set_answer(&self, path: &str, status: u16, body: &str) {
        self.state.pages.lock().unwrap().insert(path.to_owned(), (status, body.to_owned()));
    }

    /// Returns the number of requests for one of these paths.
    pub fn count_of(&self, path: &str) -> usize {
        self.state.counts.lock().unwrap().get(path).copied().unwrap_or(0)
    }

    /// Sets the reported version.
    pub fn set_version(&self, version: &str) {
        self.set_answer("/version", 200, &format!("{{\"version\":\"{version}\"}}"));
    }

    /// Sets the served model and its context length.
    pub fn set_model(&self, id: &str, max_model_len: u32) {
        let card =
            format!("{{\"id\":\"{id}\",\"object\":\"model\",\"max_model_len\":{max_model_len}}}");
        self.set_answer("/v1/models", 200, &format!("{{\"object\":\"list\",\"data\":[{card}]}}"));
    }

    /// Closes every connection, as uvicorn does with idle ones.
    pub async fn hang_up(&self) {
        let tasks = std::mem::take(&mut *self.state.connections.lock().unwrap());
        for task in tasks {
            task.abort();
            drop(task.await);
        }
    }

    /// Runs the script for every `/tokenize`. Otherwise the proxy's own, which has no request id, is a
    /// probe of a path that the engine lacks.
    pub fn script_tokenize(&self) {
        self.state.scripts_tokenize.store(true, SeqCst);
    }

    /// Stops answering probes, as a stopped process does.
    pub fn hang_probes(&self) {
        self.state.probes_hang.store(true, SeqCst);
    }

    /// Returns the number of exchanges that hang.
    pub fn hanging(&self) -> usize {
        self.state.hanging.load(SeqCst)
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    if parts.method == http::Method::GET && state.probes_hang.load(SeqCst) {
        return std::future::pending().await;
    }
    let page = state.pages.lock().unwrap().get(parts.uri.path()).cloned();
    if let Some((status, body)) = page {
        *state.counts.lock().unwrap().entry(parts.uri.path().to_owned()).or_default() += 1;
        return Ok(json(status, body));
    }
    match parts.uri.path() {
        "/health" => return Ok(json(200, String::new())),
        "/v1/models" => {
            let list =
                r#"{"object":"list","data":[{"id":"m","object":"model","max_model_len":4096}]}"#;
            return Ok(json(200, list.to_owned()));
        }
        "/tokenize"
            if !state.scripts_tokenize.load(SeqCst)
                && !parts.headers.contains_key("x-request-id") =>
        {
            return Ok(json(404, String::new()));
        }
        _ if parts.method == http::Method::GET => return Ok(json(404, String::new())),
        _ => {}
    }
    let path = parts.uri.path().to_owned();
    state.sent.lock().unwrap().push(Sent { path, headers: parts.headers, body });
    let act = state.script.lock().unwrap().pop_front().unwrap_or_else(|| state.default.clone());
    match act {
        Act::Json(status, body) => Ok(json(status, body)),
        Act::Slow(status, body) => {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            Ok(json(status, body))
        }
        Act::Chunks(chunks) => Ok(stream(chunks, None)),
        Act::Lines(chunks) => Ok(as_lines(stream(chunks, None))),
        Act::BreakLines(chunks) => Ok(as_lines(stream(chunks, Some(Broken)))),
        Act::Break(chunks) => Ok(stream(chunks, Some(Broken))),
        Act::Hang(chunks) => Ok(hang(&state, chunks)),
        Act::Drop => Err(Broken),
        Act::Silent => {
            state.hanging.fetch_add(1, SeqCst);
            let _hanging = Hanging(Arc::clone(&state));
            std::future::pending().await
        }
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Broken>;

/// Error that cuts the connection.
#[derive(Debug)]
pub struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut on purpose")
    }
}

impl std::error::Error for Broken {}

fn json(status: u16, body: String) -> Response<Body> {
    let body = http_body_util::Full::new(Bytes::from(body));
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .header("x-engine", "fake")
        .header("endpoint-load-metrics", "TEXT named_metrics.num_requests_waiting=3.0")
        .body(body.map_err(|never: Infallible| match never {}).boxed_unsync())
        .unwrap()
}

/// One chunk per write: each is sent after the previous one has been taken.
fn stream(chunks: Vec<String>, end: Option<Broken>) -> Response<Body> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for chunk in chunks {
            sender.send(Ok(Frame::data(Bytes::from(chunk)))).ok();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        if let Some(broken) = end {
            sender.send(Err(broken)).ok();
        }
    });
    events(receiver)
}

fn as_lines(mut response: Response<Body>) -> Response<Body> {
    let kind = "application/x-ndjson".parse().unwrap();
    response.headers_mut().insert("content-type", kind);
    response
}

fn hang(state: &Arc<State>, chunks: Vec<String>) -> Response<Body> {
    let (sender, receiver) = mpsc::unbounded_channel();
    state.hanging.fetch_add(1, SeqCst);
    let hanging = Hanging(Arc::clone(state));
    for chunk in chunks {
        sender.send(Ok(Frame::data(Bytes::from(chunk)))).unwrap();
    }
    tokio::spawn(async move {
        sender.closed().await;
        drop(hanging);
    });
    events(receiver)
}

fn events(receiver: mpsc::UnboundedReceiver<Result<Frame<Bytes>, Broken>>) -> Response<Body> {
    Response::builder()
        .header("content-type", "text/event-stream; charset=utf-8")
        .body(StreamBody::new(UnboundedReceiverStream::new(receiver)).boxed_unsync())
        .unwrap()
}

/// Returns a chat stream of `n` one-word chunks, framed as by vLLM.
pub fn chat_chunks(n: usize) -> Vec<String> {
    let chunk = |delta: &str, finish: &str| {
        format!(
            "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\
             \"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}]}}\n\n"
        )
    };
    let mut chunks = vec![chunk(r#"{"role":"assistant","content":""}"#, "null")];
    chunks.extend((0..n).map(|i| chunk(&format!(r#"{{"content":"w{i} "}}"#), "null")));
    chunks.push(chunk(r#"{"content":""}"#, "\"length\""));
    chunks.push("data: [DONE]\n\n".to_owned());
    chunks
}

/// Returns a complete chat answer.
pub fn chat_answer(text: &str) -> String {
    format!(
        "{{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{{\"index\":0,\
         \"message\":{{\"role\":\"assistant\",\"content\":\"{text}\"}},\"finish_reason\":\"stop\"}}],\
         \"usage\":{{\"prompt_tokens\":9,\"total_tokens\":12,\"completion_tokens\":3}},\"kv_transfer_params\":null}}"
    )
}

/// Returns a prefill answer that contains a hand-off.
pub fn prefill_answer() -> String {
    let params = r#"{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[1,2]],"remote_engine_id":"e","remote_request_id":"r","remote_host":"h","remote_port":1,"tp_size":1}"#;
    chat_answer("x")
        .replace("\"kv_transfer_params\":null", &format!("\"kv_transfer_params\":{params}"))
}
