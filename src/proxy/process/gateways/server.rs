//! The address for other gateways (`gateways.listen`), HTTP/2: identity and leadership for gateways
//! that search the leader, and the streams of loads while this gateway leads.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tidegate_scheduler::gateways::GatewayReport;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::exchange::LoadExchange;
use super::lines::{LineReader, Lines, line, lines};
use super::token::TokenPair;
use super::{IDENTITY, LOADS_PATH, PING, STATUS_PATH};
use crate::listener::client_socket::ClientSocket;
use crate::listener::front::{App, ConnectedClient, is_on};
use crate::runtime::reloadable::Reloadable;

/// Most connections: two for each of at most 32 gateways, and as many for restarted ones.
pub const CONNECTIONS_MAX: usize = 128;
/// Longest time without a report, after which a stream is closed.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Longest wait for open streams when the process ends.
const CLOSE_MAX: Duration = Duration::from_millis(200);
/// Longest identity, in bytes.
const IDENTITY_MAX: usize = 256;

type Answer = Response<Either<Full<Bytes>, Lines>>;

/// Answer to a leadership query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Status {
    /// Identity of the process.
    pub identity: String,
    /// Whether it leads.
    pub leads: bool,
    /// Whether it drains; a draining gateway does not become leader.
    pub drains: bool,
}

/// Serves the address for other gateways.
pub struct LoadServer(pub Arc<LoadExchange>);

impl App for LoadServer {
    async fn serve(
        self: Arc<Self>,
        io: ClientSocket,
        _: ConnectedClient,
        mut stop: watch::Receiver<bool>,
    ) {
        let service = service_fn(move |request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.answer(request)) }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING);
        let mut serving = pin!(builder.serve_connection(TokioIo::new(io), service));
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = is_on(&mut stop) => {
                serving.as_mut().graceful_shutdown();
                timeout(CLOSE_MAX, serving).await.unwrap_or(Ok(()))
            }
        };
        ended.unwrap_or_else(|error| tracing::debug!("connection of a gateway: {error}"));
    }
}

impl LoadServer {
    fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let exchange = &self.0;
        if !has_token(&head.headers, exchange.parts.token.as_deref().map(Reloadable::current)) {
            return refusal(
                StatusCode::UNAUTHORIZED,
                "the bearer token of the gateways is required\n",
            );
        }
        match (&head.method, head.uri.path()) {
            (&Method::GET, STATUS_PATH) => {
                let status = Status {
                    identity: exchange.parts.identity.clone(),
                    leads: exchange.leads(),
                    drains: exchange.parts.proxy.is_draining(),
                };
                json(Either::Left(Full::new(line(&status))))
            }
            (&Method::POST, LOADS_PATH) => match identity_in(&head.headers) {
                _ if !exchange.leads() => {
                    refusal(StatusCode::CONFLICT, "this gateway does not lead\n")
                }
                Some(name) => json(Either::Right(stream(Arc::clone(exchange), name, body))),
                None => refusal(StatusCode::BAD_REQUEST, "x-tidegate-gateway is missing\n"),
            },
            _ => refusal(StatusCode::NOT_FOUND, "no such path\n"),
        }
    }
}

/// Reads the reports of a gateway in a task. Returns the response body with the sums.
fn stream(exchange: Arc<LoadExchange>, name: String, body: Incoming) -> Lines {
    let (sums, answer) = lines();
    let number = exchange.open(&name, sums);
    tracing::info!(gateway = %name, "a gateway reports its loads");
    tokio::spawn(async move {
        let (mut reader, mut is_refused) = (LineReader::new(body), false);
        let ended = loop {
            match timeout(SILENCE_MAX, reader.next::<GatewayReport>()).await {
                Ok(Ok(Some(report))) => {
                    let checked = exchange.checked(&name, report, 1, &mut is_refused);
                    let Some(report) = checked else { continue };
                    if !exchange.reported(&name, number, report) {
                        break "the stream was closed".to_owned();
                    }
                }
                Ok(Ok(None)) => break "the gateway has ended the stream".to_owned(),
                Ok(Err(error)) => break error.to_string(),
                Err(_) => break format!("no report for {SILENCE_MAX:?}"),
            }
        };
        exchange.left(&name, number);
        tracing::info!(gateway = %name, "a gateway's reports have ended: {ended}");
    });
    answer
}

fn json(body: Either<Full<Bytes>, Lines>) -> Answer {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn refusal(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(Bytes::from_static(text.as_bytes()))));
    *answer.status_mut() = status;
    answer
}

fn identity_in(headers: &HeaderMap) -> Option<String> {
    let name = headers.get(IDENTITY)?.to_str().ok()?;
    (!name.is_empty() && name.len() <= IDENTITY_MAX).then(|| name.to_owned())
}

/// Returns whether the request has the token, if one is required.
fn has_token(headers: &HeaderMap, tokens: Option<Arc<TokenPair>>) -> bool {
    let Some(tokens) = tokens else { return true };
    let offered = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let offered = offered.strip_prefix(b"Bearer ").unwrap_or_default();
    tokens.accept(offered, Instant::now())
}
