//! The admin address: metrics, probes, the fleet, the plan and its history, role changes by
//! operators. It has its own port, separate from clients' traffic. All paths are listed in one
//! match.

mod backends;
mod config;
mod dashboard;
mod events;
mod guard;
mod requests;
pub mod sampler;
mod targets;
mod views;
pub mod what_if;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tidegate_types::{Role, Seconds};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::control::{FleetUpdate, Hold, RoleCommand};
use crate::dispatch::context::Proxy;
use crate::listener::client_socket::ClientSocket;
use crate::listener::front::{App, ConnectedClient, is_on};

use events::AdminBody;
use guard::Guard;
use what_if::{WhatIf, WhatIfQuery, WhatIfRefusal};

/// Path of one request, before its id.
const ONE_REQUEST: &str = "/v1/requests/";
/// Path prefix of one backend.
const ONE_BACKEND: &str = "/v1/backends/";
/// Largest body in bytes; a role change has a few dozen.
const BODY_MAX: usize = 64 << 10;
/// Most connections at once; operators, scrapers and probes need a few.
pub const CONNECTIONS_MAX: usize = 256;
/// Time-out for a header, for the next request on a connection, and for a body.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest hold of an operator's flip: one week. Longer holds are pins.
const HOLD_MAX: Seconds = Seconds(604_800.0);

/// Serves the admin port.
pub struct AdminApp {
    /// State shown by the views.
    pub proxy: Arc<Proxy>,
    /// Channel to the control loop.
    pub commands: mpsc::Sender<RoleCommand>,
    /// Channel for added and removed backends.
    pub fleet_updates: mpsc::Sender<FleetUpdate>,
    /// Permit of one check of settings.
    pub checks: Arc<Semaphore>,
    /// Simulations on recent arrivals.
    pub what_if: Arc<WhatIf>,
}

/// Body of `POST /v1/backends/{name}/role`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleChange {
    role: Option<Role>,
    pin: Option<bool>,
    hold_seconds: Option<f64>,
}

#[derive(Serialize)]
struct ProblemView {
    error: String,
}

type Answer = Response<AdminBody>;

impl App for AdminApp {
    async fn serve(
        self: Arc<Self>,
        io: ClientSocket,
        _: ConnectedClient,
        mut stop: watch::Receiver<bool>,
    ) {
        let stopping = stop.clone();
        let service = service_fn(|request| async {
            Ok::<_, Infallible>(self.answer(request, &stopping).await)
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(TIMEOUT);
        let mut serving = pin!(builder.serve_connection(TokioIo::new(io), service));
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = is_on(&mut stop) => {
                serving.as_mut().graceful_shutdown();
                timeout(TIMEOUT, serving).await.unwrap_or(Ok(()))
            }
        };
        // A connection closed by a scraper needs no handling.
        ended.unwrap_or_else(|error| tracing::debug!("admin connection ended: {error}"));
    }
}

impl AdminApp {
    async fn answer(&self, request: Request<Incoming>, stop: &watch::Receiver<bool>) -> Answer {
        let mut answer = self.find(request, stop).await;
        if self.proxy.is_draining() {
            // A request on a new connection may reach the successor process.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    fn admit(&self, head: &Parts) -> Result<(), guard::Refusal> {
        let settings = self.proxy.settings.load();
        let hosts = &settings.values.admin.hosts;
        Guard { tokens: &settings.admin_tokens, hosts }.admit(head)
    }

    async fn find(&self, request: Request<Incoming>, stop: &watch::Receiver<bool>) -> Answer {
        let (head, body) = request.into_parts();
        if let Err((status, why)) = self.admit(&head) {
            let mut answer = problem(status, why.to_owned());
            if status == StatusCode::UNAUTHORIZED {
                answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            return answer;
        }
        let request = Request::from_parts(head, body);
        let proxy = &self.proxy;
        let path = request.uri().path().to_owned();
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        match path.as_str() {
            "/livez" if get => text(StatusCode::OK, "text/plain", "ok\n".into()),
            "/readyz" if get => match proxy.readiness() {
                Ok(()) => text(StatusCode::OK, "text/plain", "ready\n".into()),
                Err(why) => {
                    let status = StatusCode::SERVICE_UNAVAILABLE;
                    text(status, "text/plain", format!("not ready: {why}\n"))
                }
            },
            "/metrics" if get => {
                let table = proxy.fleet.table();
                let waiting = proxy.queue.signal().waiting();
                let page = proxy.metrics.render(&proxy.fleet, &table, waiting, &proxy.bodies);
                text(StatusCode::OK, "text/plain; version=0.0.4", page)
            }
            "/v1/fleet" if get => json(StatusCode::OK, &views::fleet(proxy)),
            "/v1/backends" if get => json(StatusCode::OK, &views::backends(proxy)),
            "/v1/backends" if request.method() == Method::POST => self.add_backend(request).await,
            "/v1/config" if get => config::config(proxy),
            "/v1/config/check" if request.method() == Method::POST => {
                self.check_config(request).await
            }
            "/v1/plan" if get => json(StatusCode::OK, &views::plan(proxy)),
            "/v1/plan/history" if get => json(StatusCode::OK, &proxy.journal.entries()),
            "/v1/requests" if get => self.requests(request.uri().query()),
            "/v1/history" if get => json(StatusCode::OK, &proxy.history.points()),
            "/v1/outlook" if get => json(StatusCode::OK, &**proxy.outlook.load()),
            "/v1/targets" if get => json(StatusCode::OK, &targets::targets(proxy)),
            "/v1/events" if get => self.events(stop),
            "/v1/what-if" if request.method() == Method::POST => self.simulate(request).await,
            _ if get && dashboard::file(&path).is_some() => page(&path),
            _ if get && path.starts_with(ONE_REQUEST) => self.request(&path[ONE_REQUEST.len()..]),
            _ if request.method() == Method::DELETE && path.starts_with(ONE_BACKEND) => {
                let now = request.uri().query() == Some("now=true");
                self.remove_backend(&path[ONE_BACKEND.len()..], now).await
            }
            _ => match path.strip_prefix("/v1/backends/").and_then(|p| p.strip_suffix("/role")) {
                Some(name) if request.method() == Method::POST => {
                    let name = name.to_owned();
                    self.change_role(&name, request).await
                }
                _ => {
                    problem(StatusCode::NOT_FOUND, format!("unknown admin path or method: {path}"))
                }
            },
        }
    }

    /// Requests in flight; with `ended=N` also the last N that have ended.
    fn requests(&self, query: Option<&str>) -> Answer {
        let mut pairs = query.unwrap_or_default().split('&');
        match pairs.find_map(|pair| pair.strip_prefix("ended=")).map(str::parse) {
            None => json(StatusCode::OK, &views::requests(&self.proxy)),
            Some(Ok(count)) => json(StatusCode::OK, &requests::all(&self.proxy, count)),
            Some(Err(_)) => problem(StatusCode::BAD_REQUEST, "ended is not a number".to_owned()),
        }
    }

    /// One request, by its `x-request-id` or its number.
    fn request(&self, id: &str) -> Answer {
        let id = percent_decode_str(id).decode_utf8_lossy();
        if let Some(ended) = requests::find(&self.proxy, &id) {
            return json(StatusCode::OK, &ended);
        }
        match views::request(&self.proxy, &id) {
            Some(live) => json(StatusCode::OK, &live),
            None => {
                let why = format!("no request {id:?} is in flight or among the last that ended");
                problem(StatusCode::NOT_FOUND, why)
            }
        }
    }

    /// Starts an event stream, within the limit on their number.
    fn events(&self, stop: &watch::Receiver<bool>) -> Answer {
        let Some(subscriber) = self.proxy.history.subscribe() else {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let mut answer = problem(status, "too many clients of /v1/events".to_owned());
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
            return answer;
        };
        let mut answer = Response::new(events::stream(&self.proxy, subscriber, stop.clone()));
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }

    async fn simulate(&self, request: Request<Incoming>) -> Answer {
        let question: WhatIfQuery = match parsed(request).await {
            Ok(question) => question,
            Err(answer) => return *answer,
        };
        let (proxy, what_if) = (Arc::clone(&self.proxy), Arc::clone(&self.what_if));
        let answer = tokio::task::spawn_blocking(move || what_if.answer(&proxy, question)).await;
        match answer {
            Ok(Ok(view)) => json(StatusCode::OK, &view),
            Ok(Err(WhatIfRefusal::Invalid(why))) => problem(StatusCode::BAD_REQUEST, why),
            Ok(Err(WhatIfRefusal::Busy)) => {
                problem(StatusCode::CONFLICT, "another simulation is running".to_owned())
            }
            Ok(Err(WhatIfRefusal::Absent)) => {
                problem(StatusCode::NOT_IMPLEMENTED, "this program has no simulator".to_owned())
            }
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    async fn change_role(&self, name: &str, request: Request<Incoming>) -> Answer {
        let Some(backend) = self.proxy.fleet.named(name) else {
            return problem(StatusCode::NOT_FOUND, format!("no backend is named {name:?}"));
        };
        let change: RoleChange = match parsed(request).await {
            Ok(change) => change,
            Err(answer) => return *answer,
        };
        let pinned = backend.pin().is_some_and(|pin| pin.until.is_none());
        let flip_hold = self.proxy.settings.load().values.admin.flip_hold;
        let hold = match hold(&change, pinned, flip_hold) {
            Ok(hold) => hold,
            Err(why) => return problem(StatusCode::BAD_REQUEST, why),
        };
        let (reply, answer) = oneshot::channel();
        let command = RoleCommand { backend: backend.id, role: change.role, hold, reply };
        let sent = self.commands.send(command).await.is_ok();
        match answer.await {
            Ok(Ok(plan)) if sent => {
                json(StatusCode::OK, &views::changed(&self.proxy, &plan, &backend))
            }
            Ok(Err(refused)) => problem(StatusCode::CONFLICT, refused),
            _ => problem(StatusCode::SERVICE_UNAVAILABLE, "the control loop has stopped".into()),
        }
    }
}

/// Returns the hold of a role change. A flip without `pin` and `hold_seconds` gets `usual`, or keeps
/// an existing pin.
fn hold(change: &RoleChange, pinned: bool, usual: Seconds) -> Result<Option<Hold>, String> {
    match (change.pin, change.hold_seconds) {
        (Some(true), Some(_)) => Err("pin and hold_seconds exclude each other".to_owned()),
        (Some(true), None) => Ok(Some(Hold::Pinned)),
        (_, Some(seconds)) if (0.0..=HOLD_MAX.get()).contains(&seconds) => match seconds {
            0.0 => Ok(Some(Hold::Released)),
            _ => Ok(Some(Hold::For(Seconds(seconds)))),
        },
        (_, Some(seconds)) => {
            Err(format!("hold_seconds is {seconds}, must be 0 to {}", HOLD_MAX.get()))
        }
        (Some(false), None) if change.role.is_none() => Ok(Some(Hold::Released)),
        (None, None) if pinned || change.role.is_none() => Ok(None),
        (_, None) => Ok(Some(Hold::For(usual))),
    }
}

/// Reads a JSON body, within limits of size and time.
async fn parsed<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Box<Answer>> {
    let body = body_of(request, BODY_MAX).await?;
    serde_json::from_slice(&body)
        .map_err(|error| Box::new(problem(StatusCode::BAD_REQUEST, error.to_string())))
}

/// Reads a body of at most `max` bytes, within the time limit.
async fn body_of(request: Request<Incoming>, max: usize) -> Result<Bytes, Box<Answer>> {
    let refused = |status, why| Err(Box::new(problem(status, why)));
    let reading = Limited::new(request.into_body(), max).collect();
    match timeout(TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => refused(StatusCode::BAD_REQUEST, error.to_string()),
        Err(_) => {
            let why = "the body was not received in time".to_owned();
            refused(StatusCode::REQUEST_TIMEOUT, why)
        }
    }
}

/// A file of the dashboard. The policy admits scripts, styles and connections of this origin only.
fn page(path: &str) -> Answer {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
        connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
        frame-ancestors 'none'";
    let (kind, body) = dashboard::file(path).unwrap_or_default();
    let mut answer = whole(StatusCode::OK, kind, Bytes::from_static(body.as_bytes()));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Answer {
    whole(status, kind, Bytes::from(body))
}

fn whole(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(AdminBody::Whole(Full::new(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(body) => text(status, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

fn problem(status: StatusCode, error: String) -> Answer {
    json(status, &ProblemView { error })
}
