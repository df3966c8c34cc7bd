//! HTTP/2, with prior knowledge or after TLS: hyper's codec.

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tidegate_engine::ApiError;
use tidegate_filters::AdmittedHead;
use tidegate_http1::HEAD_MAX;
use tidegate_types::Seconds;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::h2_body::H2Body;
use super::pace::allowance;
use crate::dispatch::context::Proxy;
use crate::dispatch::settings_in_force::SettingsInForce;
use crate::listener::front::ConnectedClient;
use crate::request::body::RelayBody;
use crate::request::handle as request;
use crate::request::intake::{self, ReceivedBody, ReceivedRequest};
use crate::request::respond;

/// Most concurrent streams of a connection: twice nginx's default.
const STREAMS_MAX: u32 = 256;
/// Ping interval while streams are open, to detect a client that has left.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Time-out of a ping, after which the connection is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves a connection until the client or the proxy closes it, or no stream was open for `patience`.
pub async fn serve<Io>(
    proxy: Arc<Proxy>,
    patience: Seconds,
    client: ConnectedClient,
    io: Io,
    mut stop: watch::Receiver<bool>,
) where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let streams = Arc::new(Streams::default());
    let counted = Arc::clone(&streams);
    let service = service_fn(move |incoming: Request<Incoming>| {
        let (proxy, client) = (Arc::clone(&proxy), client.clone());
        let stream = counted.open();
        let is_head = incoming.method() == Method::HEAD;
        async move {
            let mut received = read(&proxy, patience, incoming, client.address).await;
            received.subject = client.subject;
            let stall = received.settings.values.server.client_stall;
            let mut answer = request::handle(Arc::clone(&proxy), received).await;
            if is_head {
                answer = without_body(answer);
            }
            Ok::<_, Infallible>(answer.map(|body| H2Body::new(proxy, stall, body, stream)))
        }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_MAX as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(io), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = streams.idle_for(patience.to_duration()) => {
            serving.as_mut().graceful_shutdown();
            // A client that does not answer the GOAWAY has no open stream.
            match timeout(patience.to_duration(), serving).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
        _ = stop.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // Errors of disconnected clients end here; the access log reports their requests.
        tracing::debug!("client connection ended: {error}");
    }
}

/// Returns the answer to HEAD: the head that GET gets, without the body (RFC 9110 §9.3.2).
fn without_body(answer: Response<RelayBody>) -> Response<RelayBody> {
    let (mut head, body) = answer.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    Response::from_parts(head, RelayBody::full(Bytes::new()))
}

/// Open streams of one connection, and a counter of all streams. The connection is idle if neither
/// changes.
#[derive(Default)]
pub(super) struct Streams {
    open: AtomicUsize,
    begun: AtomicUsize,
}

/// Counts one stream, from its head to the end of its answer.
pub(super) struct CountedStream(Arc<Streams>);

impl Streams {
    fn open(self: &Arc<Self>) -> CountedStream {
        self.open.fetch_add(1, Relaxed);
        self.begun.fetch_add(1, Relaxed);
        CountedStream(Arc::clone(self))
    }

    /// Returns when no stream was open for between one and two times `patience`.
    async fn idle_for(&self, patience: Duration) {
        let mut seen = None;
        loop {
            sleep(patience).await;
            let now = (self.open.load(Relaxed) == 0).then(|| self.begun.load(Relaxed));
            if now.is_some() && now == seen {
                return;
            }
            seen = now;
        }
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// Reads a whole body at the minimum rate or faster. An announced length is charged to the body budget
/// first; otherwise each part is charged as it arrives.
///
/// # Errors
/// 408 if it is too slow, 413 if it is too large, 503 beyond the budget, 400 if it is incomplete.
async fn body(
    proxy: &Proxy,
    settings: &SettingsInForce,
    patience: Seconds,
    head: AdmittedHead,
    mut body: Incoming,
) -> Result<ReceivedBody, ApiError> {
    // A body above the whole budget never fits: 413, not 503.
    let max = settings.values.server.body_max_bytes.min(proxy.bodies.max());
    let too_large = || ApiError::too_large(max);
    let announced = body.size_hint().exact();
    let length = usize::try_from(announced.unwrap_or(0)).map_err(|_| too_large())?;
    if length > max {
        return Err(too_large());
    }
    let mut held = proxy.bodies.try_hold(length).ok_or_else(respond::body_budget_exhausted)?;
    let (began, mut all) = (Instant::now(), BytesMut::with_capacity(length));
    loop {
        let wait = patience.to_duration().min(allowance(began.elapsed(), all.len()));
        let frame = match timeout(wait, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return Ok(ReceivedBody { head, bytes: all.freeze(), held }),
            Ok(Some(Err(_))) => {
                return Err(ApiError::bad_request("The request body could not be read.", None));
            }
            Err(_) => return Err(ApiError::body_timeout()),
        };
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + data.len() > max {
            return Err(too_large());
        }
        if announced.is_none() && !held.grow(data.len()) {
            return Err(respond::body_budget_exhausted());
        }
        all.extend_from_slice(&data);
    }
}

async fn read(
    proxy: &Proxy,
    patience: Seconds,
    incoming: Request<Incoming>,
    peer: IpAddr,
) -> ReceivedRequest {
    let (arrived, settings) = (proxy.clock.now(), proxy.settings.load_full());
    let (head, incoming) = incoming.into_parts();
    let body = match intake::admit_head(proxy, &settings, &head) {
        Err(error) => Err(error),
        Ok(admitted) => body(proxy, &settings, patience, admitted, incoming).await,
    };
    // Websockets over h2 (RFC 8441) are not supported: SETTINGS_ENABLE_CONNECT_PROTOCOL is not sent.
    ReceivedRequest { settings, head, body, upgrades: false, arrived, subject: None, peer }
}
