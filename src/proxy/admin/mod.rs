//! The admin address: metrics, probes, the fleet, the plan and its history, roles by hand. Its own
//! port, never the data port; the addresses are listed in one match.

mod dashboard;
mod views;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::Arc;
use tidegate_terms::Role;
use tokio::sync::{mpsc, oneshot};

use crate::control::Command;
use crate::service::Proxy;

/// A role change is a few dozen bytes.
const BODY_MAX: usize = 64 << 10;

/// Serves the admin port.
pub struct AdminApp {
    /// What it shows.
    pub proxy: Arc<Proxy>,
    /// The way to the control loop.
    pub commands: mpsc::Sender<Command>,
}

/// The body of `POST /v1/backends/{name}/role`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleChange {
    role: Option<Role>,
    pin: Option<bool>,
}

#[derive(Serialize)]
struct Problem {
    error: String,
}

type Answer = Response<Full<Bytes>>;

#[async_trait]
impl ServerApp for AdminApp {
    async fn process_new(self: &Arc<Self>, io: Stream, stop: &ShutdownWatch) -> Option<Stream> {
        let service =
            service_fn(|request| async { Ok::<_, Infallible>(self.answer(request).await) });
        let serving = http1::Builder::new().serve_connection(TokioIo::new(io), service);
        let mut stop = stop.clone();
        tokio::select! {
            // A scraper that hangs up is nobody's problem.
            ended = serving => ended.unwrap_or_else(|error| tracing::debug!("admin: {error}")),
            _ = stop.changed() => {}
        }
        None
    }
}

impl AdminApp {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let proxy = &self.proxy;
        let path = request.uri().path().to_owned();
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        match path.as_str() {
            "/livez" if get => text(StatusCode::OK, "text/plain", "ok\n".into()),
            "/readyz" if get => match proxy.is_ready() {
                true => text(StatusCode::OK, "text/plain", "ready\n".into()),
                false => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready\n".into()),
            },
            "/metrics" if get => {
                let table = proxy.fleet.table();
                let waiting = proxy.queue.signal().waiting();
                let page = proxy.metrics.render(&proxy.fleet, &table, waiting);
                text(StatusCode::OK, "text/plain; version=0.0.4", page)
            }
            "/v1/fleet" if get => json(StatusCode::OK, &views::fleet(proxy)),
            "/v1/plan" if get => json(StatusCode::OK, &views::plan(proxy)),
            "/v1/plan/history" if get => json(StatusCode::OK, &proxy.journal.entries()),
            "/v1/requests" if get => json(StatusCode::OK, &views::requests(proxy)),
            "/" if get => text(StatusCode::OK, "text/html; charset=utf-8", dashboard::PAGE.into()),
            _ => match path.strip_prefix("/v1/backends/").and_then(|p| p.strip_suffix("/role")) {
                Some(name) if request.method() == Method::POST => {
                    let name = name.to_owned();
                    self.change_role(&name, request).await
                }
                _ => problem(StatusCode::NOT_FOUND, format!("no such admin address: {path}")),
            },
        }
    }

    async fn change_role(&self, name: &str, request: Request<Incoming>) -> Answer {
        let Some(backend) = self.proxy.fleet.backends.iter().find(|b| &*b.name == name) else {
            return problem(StatusCode::NOT_FOUND, format!("no backend is called {name:?}"));
        };
        let body = match Limited::new(request.into_body(), BODY_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return problem(StatusCode::BAD_REQUEST, error.to_string()),
        };
        let change: RoleChange = match serde_json::from_slice(&body) {
            Ok(change) => change,
            Err(error) => return problem(StatusCode::BAD_REQUEST, error.to_string()),
        };
        let (reply, answer) = oneshot::channel();
        let command = Command { backend: backend.id, role: change.role, pin: change.pin, reply };
        let sent = self.commands.send(command).await.is_ok();
        match answer.await {
            Ok(Ok(plan)) if sent => json(StatusCode::OK, &views::plan_of(&self.proxy, &plan)),
            Ok(Err(refused)) => problem(StatusCode::CONFLICT, refused),
            _ => problem(StatusCode::SERVICE_UNAVAILABLE, "the control loop has stopped".into()),
        }
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
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
    json(status, &Problem { error })
}
