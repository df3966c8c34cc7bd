//! A fake API server of Kubernetes: lists and watches of pods and InferencePools over HTTP/1.1, with
//! resourceVersions, label selectors, pages, bookmarks, and the faults of a real one.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

type Body = BoxBody<Bytes, Infallible>;

/// A change of an object. The state before and after determine the event for a watch with a selector.
#[derive(Clone, Debug)]
struct Change {
    version: u64,
    collection: String,
    before: Option<Value>,
    after: Option<Value>,
}

/// Answer that replaces a list or a watch.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An answer with this status, and with `Retry-After` if it is above 0.
    Status(u16, u32),
    /// A watch that ends after this many events.
    EndsAfter(usize),
    /// A watch with one ERROR event of this code.
    ErrorEvent(u16),
}

#[derive(Default)]
struct State {
    version: u64,
    /// Oldest version at which a watch can resume.
    oldest: u64,
    objects: BTreeMap<(String, String), Value>,
    log: Vec<Change>,
    list_faults: Vec<Fault>,
    watch_faults: Vec<Fault>,
    /// Each list and watch, in order: `list` or `watch VERSION`.
    requests: Vec<String>,
    authorizations: Vec<String>,
    /// Verb and resource of the permissions that reviews deny.
    denied: Vec<(String, String)>,
    page: Option<usize>,
}

#[derive(Clone, Debug)]
enum Signal {
    Changed(Change),
    Bookmark(u64),
    Break,
}

/// Fake API server.
pub struct ApiServer {
    /// Listening address.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    signals: broadcast::Sender<Signal>,
    serving: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Starts a server without objects.
    pub async fn start() -> ApiServer {
        let (signals, _) = broadcast::channel(4096);
        let state = State { version: 100, ..State::default() };
        let mut server = ApiServer {
            address: ([127, 0, 0, 1], 0).into(),
            state: Arc::new(Mutex::new(state)),
            signals,
            serving: None,
        };
        server.listen().await;
        server
    }

    /// Listens at the address; also after [`ApiServer::stop`].
    pub async fn listen(&mut self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        };
        self.address = listener.local_addr().unwrap();
        let (state, signals) = (Arc::clone(&self.state), self.signals.clone());
        self.serving = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, signals) = (Arc::clone(&state), signals.clone());
                connections.spawn(async move {
                    let service = service_fn(|request| answer(&state, &signals, request));
                    let _ =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }));
    }

    /// Refuses new connections and resets open ones.
    pub fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
        self.break_watches();
    }

    /// Ends every watch without an event.
    pub fn break_watches(&self) {
        let _ = self.signals.send(Signal::Break);
    }

    /// Sends a bookmark with the current version to every watch.
    pub fn bookmark(&self) {
        let mut state = self.state.lock().unwrap();
        state.version += 1000;
        let _ = self.signals.send(Signal::Bookmark(state.version));
    }

    /// Drops the history: watches of older versions get 410.
    pub fn compact(&self) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        state.oldest = state.version;
        state.log.clear();
    }

    /// Answers the next lists with these faults.
    pub fn fail_lists(&self, faults: Vec<Fault>) {
        self.state.lock().unwrap().list_faults = faults;
    }

    /// Answers the next watches with these faults.
    pub fn fail_watches(&self, faults: Vec<Fault>) {
        self.state.lock().unwrap().watch_faults = faults;
    }

    /// Sets the largest page of a list, below the limit that the client requests.
    pub fn page(&self, objects: usize) {
        self.state.lock().unwrap().page = Some(objects);
    }

    /// Reviews deny this verb on this resource.
    pub fn deny(&self, verb: &str, resource: &str) {
        self.state.lock().unwrap().denied.push((verb.to_owned(), resource.to_owned()));
    }

    /// The objects of a collection.
    pub fn objects(&self, collection: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        let of = state.objects.iter().filter(|((path, _), _)| path == collection);
        of.map(|(_, object)| object.clone()).collect()
    }

    /// The requests since the last call.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// Distinct values of `authorization`, in the order of their first use.
    pub fn authorizations(&self) -> Vec<String> {
        self.state.lock().unwrap().authorizations.clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn full(status: StatusCode, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).boxed();
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

fn refusal(code: u16, retry_after: u32) -> Response<Body> {
    let body = json!({"kind": "Status", "code": code, "message": format!("fault {code}")});
    let mut response = full(StatusCode::from_u16(code).unwrap(), &body);
    if retry_after > 0 {
        response.headers_mut().insert("retry-after", retry_after.into());
    }
    response
}

async fn answer(
    state: &Mutex<State>,
    signals: &broadcast::Sender<Signal>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let authorization = head.headers.get("authorization");
    if let Some(value) = authorization.and_then(|value| value.to_str().ok()) {
        let mut state = state.lock().unwrap();
        if !state.authorizations.iter().any(|known| known == value) {
            state.authorizations.push(value.to_owned());
        }
    }
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = head.uri.path().to_owned();
    let query = query(head.uri.query().unwrap_or_default());
    Ok(match head.method {
        Method::GET if query.contains_key("watch") => watch(state, signals, path, &query),
        Method::GET if path == "/version" => {
            full(StatusCode::OK, &json!({"gitVersion": "v1.34.1"}))
        }
        Method::POST if path.ends_with("/selfsubjectaccessreviews") => review(state, &body),
        Method::GET if is_object(&path) => object(state, &path),
        Method::GET => list(state, &path, &query),
        method => write(state, signals, &method, &path, &body),
    })
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    let decode =
        |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    pairs.map(|(key, value)| (key.to_owned(), decode(value))).collect()
}

/// Returns whether the selectors of the request match the object.
fn selects(query: &BTreeMap<String, String>, object: &Value) -> bool {
    let labels = query.get("labelSelector").map(String::as_str).unwrap_or_default();
    let has = |term: &str| match term.split_once('=') {
        Some((key, value)) => object["metadata"]["labels"][key] == value,
        None => object["metadata"]["labels"][term].is_string(),
    };
    let named = query.get("fieldSelector").and_then(|field| field.strip_prefix("metadata.name="));
    labels.split(',').filter(|term| !term.is_empty()).all(has)
        && named.is_none_or(|name| object["metadata"]["name"] == name)
}

/// Returns whether the path is that of one object. Pods and pools are only listed.
fn is_object(path: &str) -> bool {
    ["/leases/", "/replicasets/", "/statefulsets/"].iter().any(|kind| path.contains(kind))
}

/// A SelfSubjectAccessReview, which is answered and not kept.
fn review(state: &Mutex<State>, body: &[u8]) -> Response<Body> {
    let mut review: Value = serde_json::from_slice(body).unwrap();
    let asked = &review["spec"]["resourceAttributes"];
    let asked = [&asked["verb"], &asked["resource"]].map(|part| part.as_str().unwrap().to_owned());
    let [verb, resource] = asked;
    let allowed = !state.lock().unwrap().denied.contains(&(verb, resource));
    review["status"] = json!({"allowed": allowed});
    full(StatusCode::CREATED, &review)
}

/// One object.
fn object(state: &Mutex<State>, path: &str) -> Response<Body> {
    let (collection, name) = path.rsplit_once('/').unwrap();
    let state = state.lock().unwrap();
    match state.objects.get(&(collection.to_owned(), name.to_owned())) {
        Some(object) => full(StatusCode::OK, object),
        None => refusal(404, 0),
    }
}

fn list(state: &Mutex<State>, path: &str, query: &BTreeMap<String, String>) -> Response<Body> {
    let mut state = state.lock().unwrap();
    state.requests.push("list".into());
    if !state.list_faults.is_empty() {
        match state.list_faults.remove(0) {
            Fault::Status(code, retry_after) => return refusal(code, retry_after),
            fault => panic!("{fault:?} is not a fault of a list"),
        }
    }
    let all: Vec<&Value> = state
        .objects
        .iter()
        .filter(|((collection, _), object)| collection == path && selects(query, object))
        .map(|(_, object)| object)
        .collect();
    let from: usize = query.get("continue").map_or(0, |at| at.parse().unwrap());
    let limit: usize = query["limit"].parse().unwrap();
    let page = state.page.unwrap_or(limit).min(limit);
    let items: Vec<&Value> = all.iter().skip(from).take(page).copied().collect();
    let next = from + items.len();
    let more = if next < all.len() { next.to_string() } else { String::new() };
    let metadata = json!({"resourceVersion": state.version.to_string(), "continue": more});
    full(StatusCode::OK, &json!({"kind": "List", "metadata": metadata, "items": items}))
}

fn watch(
    state: &Mutex<State>,
    signals: &broadcast::Sender<Signal>,
    path: String,
    query: &BTreeMap<String, String>,
) -> Response<Body> {
    let mut state = state.lock().unwrap();
    state.requests.push(format!("watch {}", query["resourceVersion"]));
    let from: u64 = query["resourceVersion"].parse().unwrap();
    let fault = (!state.watch_faults.is_empty()).then(|| state.watch_faults.remove(0));
    if let Some(Fault::Status(code, retry_after)) = fault {
        return refusal(code, retry_after);
    }
    let (lines, body) = mpsc::unbounded_channel::<Bytes>();
    let send = |event: Value| lines.send(Bytes::from(format!("{event}\n"))).is_ok();
    if from < state.oldest || matches!(fault, Some(Fault::ErrorEvent(_))) {
        let code = if let Some(Fault::ErrorEvent(code)) = fault { code } else { 410 };
        send(
            json!({"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "too old"}}),
        );
        return streamed(body);
    }
    let mut left = if let Some(Fault::EndsAfter(events)) = fault { events } else { usize::MAX };
    let events =
        state.log.iter().filter(|change| change.version > from && change.collection == path);
    for event in events.filter_map(|change| event(change, query)) {
        if left > 0 {
            left -= 1;
            send(event);
        }
    }
    let (mut changes, query) = (signals.subscribe(), query.clone());
    tokio::spawn(async move {
        let send = |event: Value| lines.send(Bytes::from(format!("{event}\n"))).is_ok();
        while left > 0 {
            let signal = tokio::select! {
                signal = changes.recv() => signal,
                () = lines.closed() => return,
            };
            let event = match signal {
                Ok(Signal::Changed(change)) if change.collection == path => event(&change, &query),
                Ok(Signal::Bookmark(version)) => {
                    let metadata = json!({"resourceVersion": version.to_string()});
                    Some(json!({"type": "BOOKMARK", "object": {"metadata": metadata}}))
                }
                Ok(Signal::Changed(_)) => None,
                Ok(Signal::Break) | Err(_) => return,
            };
            if let Some(event) = event {
                left -= 1;
                send(event);
            }
        }
    });
    streamed(body)
}

fn streamed(lines: mpsc::UnboundedReceiver<Bytes>) -> Response<Body> {
    let frames = UnboundedReceiverStream::new(lines).map(|line| Ok(Frame::data(line)));
    Response::new(BodyExt::boxed(StreamBody::new(frames)))
}

/// Returns the event for a watch: an object that no longer matches the selector is a deletion.
fn event(change: &Change, query: &BTreeMap<String, String>) -> Option<Value> {
    let before = change.before.as_ref().filter(|object| selects(query, object));
    let after = change.after.as_ref().filter(|object| selects(query, object));
    match (before, after) {
        (None, Some(new)) => Some(json!({"type": "ADDED", "object": new})),
        (Some(_), Some(new)) => Some(json!({"type": "MODIFIED", "object": new})),
        (Some(old), None) => {
            let mut deleted = change.after.clone().unwrap_or_else(|| old.clone());
            deleted["metadata"]["resourceVersion"] = json!(change.version.to_string());
            Some(json!({"type": "DELETED", "object": deleted}))
        }
        (None, None) => None,
    }
}

/// Applies a JSON merge patch (RFC 7396).
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => {
                into.as_object_mut().unwrap().remove(key);
            }
            value => merge(&mut into[key.as_str()], value),
        }
    }
}

/// POST to a collection; merge PATCH, PUT and DELETE of an object or its status.
fn write(
    state: &Mutex<State>,
    signals: &broadcast::Sender<Signal>,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Response<Body> {
    let mut state = state.lock().unwrap();
    let sent: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let path = path.strip_suffix("/status").unwrap_or(path);
    let (collection, name) = match method {
        &Method::POST => (path, sent["metadata"]["name"].as_str().unwrap()),
        _ => path.rsplit_once('/').unwrap(),
    };
    let key = (collection.to_owned(), name.to_owned());
    let before = state.objects.get(&key).cloned();
    let mut after = match (method, &before) {
        (&Method::POST, Some(_)) => return refusal(409, 0),
        (&Method::POST, None) => sent,
        (_, None) => return refusal(404, 0),
        (&Method::PATCH, Some(known)) => {
            let mut merged = known.clone();
            merge(&mut merged, &sent);
            merged
        }
        (&Method::PUT, Some(known)) => {
            let (expected, current) =
                (&sent["metadata"]["resourceVersion"], &known["metadata"]["resourceVersion"]);
            if expected.is_string() && expected != current {
                return refusal(409, 0);
            }
            sent
        }
        (_, Some(_)) => Value::Null,
    };
    state.version += 1;
    let version = state.version;
    if after.is_null() {
        state.objects.remove(&key);
    } else {
        after["metadata"]["resourceVersion"] = json!(version.to_string());
        if !after["metadata"]["uid"].is_string() {
            after["metadata"]["uid"] = json!(format!("uid-{version}"));
        }
        state.objects.insert(key, after.clone());
    }
    let kept = (!after.is_null()).then(|| after.clone());
    let change = Change { version, collection: collection.to_owned(), before, after: kept };
    state.log.push(change.clone());
    let _ = signals.send(Signal::Changed(change));
    full(StatusCode::OK, &after)
}
