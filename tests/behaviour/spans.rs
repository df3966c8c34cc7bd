//! Export of spans to a fake OTLP collector: the tree of a request, sampling, batches, outages.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::certificates::Authority;
use crate::client::{get, post, send, until, within};
use crate::fake::{Act, Fake, Sent, chat_answer, chat_chunks, prefill_answer};
use crate::process::{Serve, tidegate, until_models_are_served, write};
use crate::proxy::{DECODE, Engine, PREFILL, SPLIT, chat, config, plain, two_ports, vllm};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector that records batches. The first answers are those of the script, the others 200.
struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
}

impl Collector {
    async fn start(script: &[(u16, &'static str)]) -> Collector {
        Collector::with(script, None).await
    }

    /// A collector that answers over TLS.
    async fn with_tls(config: Arc<ServerConfig>) -> Collector {
        Collector::with(&[], Some(TlsAcceptor::from(config))).await
    }

    async fn with(script: &[(u16, &'static str)], tls: Option<TlsAcceptor>) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Vec<(HeaderMap, Bytes)>>>::default();
        let script = Arc::new(Mutex::new(script.iter().copied().collect::<VecDeque<_>>()));
        let seen = Arc::clone(&received);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                    async move {
                        let (head, body) = request.into_parts();
                        assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/v1/traces"));
                        let body = body.collect().await.unwrap().to_bytes();
                        let (status, after) =
                            script.lock().unwrap().pop_front().unwrap_or((200, ""));
                        seen.lock().unwrap().push((head.headers, body));
                        let answer =
                            Response::builder().status(status).header("retry-after", after);
                        Ok::<_, Infallible>(answer.body(Full::new(Bytes::from("{}"))).unwrap())
                    }
                });
                let tls = tls.clone();
                tokio::spawn(async move {
                    let builder = http1::Builder::new();
                    match tls {
                        None => builder.serve_connection(TokioIo::new(socket), service).await.ok(),
                        // A client that does not trust the certificate ends the handshake.
                        Some(tls) => match tls.accept(socket).await {
                            Ok(socket) => {
                                builder.serve_connection(TokioIo::new(socket), service).await.ok()
                            }
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Collector { address, received }
    }

    fn batches(&self) -> Vec<Bytes> {
        self.received.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }

    fn headers(&self) -> HeaderMap {
        self.received.lock().unwrap()[0].0.clone()
    }

    fn spans(&self) -> Vec<Value> {
        self.batches().iter().flat_map(|body| spans_of(body)).collect()
    }

    /// Waits for this many spans.
    async fn has(&self, count: usize) -> Vec<Value> {
        until("spans arrive", || self.spans().len() >= count).await;
        let spans = self.spans();
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }
}

fn spans_of(body: &[u8]) -> Vec<Value> {
    let body: Value = serde_json::from_slice(body).unwrap();
    body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
}

/// `tidegate serve` with variables of OpenTelemetry.
struct Gateway {
    process: Serve,
    data: SocketAddr,
    admin: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Gateway {
    async fn start(
        collector: SocketAddr,
        top: &str,
        engines: &[Engine],
        more: &[(&str, &str)],
    ) -> Gateway {
        let (data, admin) = two_ports();
        let (directory, path) = write(&config(data, admin, top, engines));
        let mut command = tidegate();
        command.args(["serve", "--config"]).arg(path);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}"));
        // `more` may replace the endpoint.
        command.envs(more.iter().copied());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = Serve::of(command.spawn().unwrap());
        within(until_models_are_served(data, admin)).await;
        Gateway { process, data, admin, _directory: directory }
    }

    async fn chat(&self, stream: bool, traceparent: Option<&str>) {
        let mut request = post("/v1/chat/completions", chat(stream));
        if let Some(traceparent) = traceparent {
            request.headers_mut().insert("traceparent", traceparent.parse().unwrap());
        }
        let answer = send(self.data, request).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    async fn counter(&self, series: &str) -> f64 {
        let page = send(self.admin, get("/metrics")).await.body;
        let prefix = format!("{series} ");
        page.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok()).unwrap_or(0.0)
    }

    /// Waits until a counter has this value.
    async fn counts(&self, series: &str, value: f64) {
        let waiting = async {
            while self.counter(series).await < value {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        within(waiting).await;
        assert_eq!(self.counter(series).await, value, "{series}");
    }
}

fn nanos(span: &Value, key: &str) -> u64 {
    span[key].as_str().unwrap().parse().unwrap()
}

fn attribute<'a>(span: &'a Value, key: &str) -> Option<&'a Value> {
    let all = span["attributes"].as_array().unwrap();
    Some(&all.iter().find(|one| one["key"] == key)?["value"])
}

const SOON: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "20");

/// Asserts that the phases of a request follow each other without a gap from its start to its end.
fn assert_without_gaps(request: &Value, phases: &[Value]) {
    let mut at = nanos(request, "startTimeUnixNano");
    assert!(at > 1_700_000_000_000_000_000, "nanoseconds since 1970");
    for span in phases {
        assert_eq!(nanos(span, "startTimeUnixNano"), at, "no gap before {}", span["name"]);
        at = nanos(span, "endTimeUnixNano");
        assert!(at >= nanos(span, "startTimeUnixNano"));
    }
    assert_eq!(at, nanos(request, "endTimeUnixNano"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_tree_of_spans_and_a_flip_a_span_of_its_own() {
    let collector = Collector::start(&[]).await;
    let p = Fake::start([], Act::Json(200, prefill_answer())).await;
    let d = Fake::start([], Act::Chunks(chat_chunks(3))).await;
    let engines = [vllm("p", p.url(), PREFILL), vllm("d", d.url(), DECODE)];
    let more = [
        SOON,
        ("OTEL_SERVICE_NAME", "gate"),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=gate-0"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret"),
    ];
    let gateway = Gateway::start(collector.address, SPLIT, &engines, &more).await;
    // The client's decision counts: the second request is not sampled.
    gateway.chat(true, Some(&format!("00-{TRACE}-{PARENT}-01"))).await;
    gateway.chat(true, Some(&format!("00-{TRACE}-{PARENT}-00"))).await;
    let spans = collector.has(5).await;
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["chat_completions m", "queue", "prefill", "hand_off", "decode"]);
    let root = &spans[0];
    assert!(spans.iter().all(|span| span["traceId"] == TRACE));
    assert_eq!((&root["parentSpanId"], &root["kind"]), (&PARENT.into(), &2.into()));
    assert!(spans[1..].iter().all(|span| span["parentSpanId"] == root["spanId"]));
    let kinds: Vec<u64> = spans[1..].iter().map(|span| span["kind"].as_u64().unwrap()).collect();
    assert_eq!(kinds, [1, 3, 1, 3]);
    let mut ids: Vec<&str> = spans.iter().map(|span| span["spanId"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 5, "span ids are unique");
    assert_without_gaps(root, &spans[1..]);
    let backend = |span: usize| attribute(&spans[span], "tidegate.backend").cloned();
    assert_eq!(backend(2), Some(serde_json::json!({"stringValue": "p"})));
    assert_eq!(backend(4), Some(serde_json::json!({"stringValue": "d"})));
    assert_eq!(attribute(root, "http.response.status_code").unwrap()["intValue"], "200");
    assert!(root["status"].is_null());
    // Both legs carry the trace with the id of the request's span.
    let own = root["spanId"].as_str().unwrap();
    for engine in [&p, &d] {
        assert_eq!(engine.sent()[0].headers["traceparent"], format!("00-{TRACE}-{own}-01"));
    }
    // The second one may run whole on the engine that has its prompt cached.
    let sent = [p.sent(), d.sent()].concat();
    let is_unsampled = |leg: &Sent| leg.headers["traceparent"].to_str().unwrap().ends_with("-00");
    assert!(
        sent.len() > 2 && sent.iter().filter(|leg| is_unsampled(leg)).count() == sent.len() - 2
    );
    let headers = collector.headers();
    assert_eq!(
        (&headers["api-key"], &headers["content-type"]),
        (&"secret".parse().unwrap(), &"application/json".parse().unwrap(),)
    );
    let batch: Value = serde_json::from_slice(&collector.batches()[0]).unwrap();
    let resource = batch["resourceSpans"][0]["resource"].to_string();
    assert!(resource.contains("\"gate\"") && resource.contains("\"gate-0\""), "{resource}");
    let role = post("/v1/backends/p/role", "{\"role\":\"mixed\"}".to_owned());
    assert_eq!(send(gateway.admin, role).await.status, 200);
    let flip = collector.has(6).await.pop().unwrap();
    assert_eq!((&flip["name"], &flip["parentSpanId"]), (&"flip".into(), &Value::Null));
    for (key, value) in
        [("backend", "p"), ("from", "prefill"), ("to", "mixed"), ("cause", "operator")]
    {
        let found = attribute(&flip, &format!("tidegate.{key}")).unwrap();
        assert_eq!(found["stringValue"], value);
    }
    gateway.counts("tidegate_spans_exported_total", 6.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ratio_decides_by_trace_and_the_last_batches_leave_with_the_process() {
    let collector = Collector::start(&[]).await;
    let engine = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let more = [
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
        ("OTEL_BSP_SCHEDULE_DELAY", "60000"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "9"),
    ];
    let mut gateway = Gateway::start(collector.address, "", &[plain("a", &engine)], &more).await;
    // Half of all ids begin their second half with 0 to 7; the client's flag does not count.
    let trace = |digit: u8| format!("{}{digit:x}{}", "a".repeat(16), "1".repeat(15));
    for digit in 0..16 {
        let flags = if digit % 2 == 0 { "00" } else { "01" };
        gateway.chat(false, Some(&format!("00-{}-{PARENT}-{flags}", trace(digit)))).await;
    }
    gateway.process.signal("-TERM");
    assert_eq!(gateway.process.exit_code().await, Some(0));
    let spans = collector.spans();
    let mut traces: Vec<&str> =
        spans.iter().map(|span| span["traceId"].as_str().unwrap()).collect();
    traces.dedup();
    assert_eq!(traces, (0..8).map(trace).collect::<Vec<_>>());
    assert!(collector.batches().iter().all(|body| spans_of(body).len() <= 9));
    assert!(collector.batches().len() > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_collector_gets_the_same_batch_again_and_a_refused_one_is_counted() {
    let collector = Collector::start(&[(503, "0.05"), (429, ""), (200, ""), (400, "")]).await;
    let engine = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let gateway = Gateway::start(collector.address, "", &[plain("a", &engine)], &[SOON]).await;
    gateway.chat(false, None).await;
    until("three attempts", || collector.batches().len() == 3).await;
    let batches = collector.batches();
    assert!(batches[0] == batches[1] && batches[1] == batches[2]);
    let spans = spans_of(&batches[0]);
    assert!(spans[0]["parentSpanId"].is_null(), "the trace begins here");
    gateway.counts("tidegate_spans_exported_total", spans.len() as f64).await;
    gateway.chat(false, None).await;
    let refused = "tidegate_spans_dropped_total{reason=\"refused\"}";
    gateway.counts(refused, spans.len() as f64).await;
    assert_eq!(collector.batches().len(), 4, "a refused batch is not sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_no_request_fails_and_dropped_spans_are_counted() {
    let engine = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let (nobody, _) = two_ports();
    let more = [SOON, ("OTEL_BSP_MAX_QUEUE_SIZE", "7")];
    let gateway = Gateway::start(nobody, "", &[plain("a", &engine)], &more).await;
    for _ in 0..10 {
        gateway.chat(false, None).await;
    }
    // A request has three spans: two requests fit.
    gateway.counts("tidegate_spans_dropped_total{reason=\"queue_full\"}", 24.0).await;
    assert_eq!(gateway.counter("tidegate_spans_exported_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_over_https_is_verified_and_verifies_the_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let of = |name: &str| Authority::new(directory.path(), name);
    let (authority, stranger) = (of("ca"), of("stranger"));
    let server = authority.leaf(directory.path(), "collector", "collector");
    let client = authority.leaf(directory.path(), "client", "gateway");
    let collector = Collector::with_tls(authority.server(&server, true)).await;
    let engine = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let endpoint = format!("https://localhost:{}", collector.address.port());
    let path = |file: &std::path::Path| file.to_str().unwrap().to_owned();
    let (cert, key) = (path(&client.cert), path(&client.key));
    let start = async |trusted: &Authority| {
        let trusted = path(&trusted.file);
        let more = [
            SOON,
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", trusted.as_str()),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", cert.as_str()),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", key.as_str()),
        ];
        Gateway::start(collector.address, "", &[plain("a", &engine)], &more).await
    };
    // One request and its phases.
    let distrusting = start(&stranger).await;
    distrusting.chat(false, None).await;
    let trusting = start(&authority).await;
    trusting.chat(false, None).await;
    until("spans arrive", || !collector.spans().is_empty()).await;
    let names: Vec<_> = collector.spans().iter().map(|span| span["name"].clone()).collect();
    let requests = names.iter().filter(|name| *name == "chat_completions m").count();
    assert_eq!(requests, 1, "those of the gateway that trusts the collector: {names:?}");
    assert_eq!(distrusting.counter("tidegate_spans_exported_total").await, 0.0);
}
