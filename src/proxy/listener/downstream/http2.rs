//! HTTP/2, with prior knowledge or after TLS: hyper's codec.

use bytes::BytesMut;
use http::Request;
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
use tidegate_http1::HEAD_MAX;
use tidegate_types::Seconds;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::h2_body::H2Body;
use super::pace::allowance;
use crate::dispatch::context::Proxy;
use crate::listener::front::ConnectedClient;
use crate::request::handle as request;
use crate::request::intake::{self, ReceivedBody, ReceivedRequest};
use crate::request::respond;

/// Streams that a connection may have open at once: what nginx allows twice, and browsers ask for.
const STREAMS_MAX: u32 = 256;
/// A ping is sent so often while streams wait, so that a client that is gone is noticed.
const PING_EVERY: Duration = Duration::from_secs(30);
/// The connection ends if a ping is not answered within this time.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serve a connection until its client or the proxy ends it, or no stream was open for `patience`.
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
        async move {
            let mut asked = read(&proxy, patience, incoming, client.address).await;
            asked.subject = client.subject;
            let answer = request::handle(Arc::clone(&proxy), asked).await;
            Ok::<_, Infallible>(answer.map(|body| H2Body::new(proxy, body, stream)))
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
            // A client that does not answer the farewell has no stream to lose.
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
        // A client that leaves in the middle ends here: the access log has its request.
        tracing::debug!("client connection: {error}");
    }
}

/// Open streams of one connection, and a count that changes with each: idle is a connection on which
/// neither has changed.
#[derive(Default)]
pub(super) struct Streams {
    open: AtomicUsize,
    begun: AtomicUsize,
}

/// Counts one stream, from its head to the end of its answer.
pub(super) struct Stream(Arc<Streams>);

impl Streams {
    fn open(self: &Arc<Self>) -> Stream {
        self.open.fetch_add(1, Relaxed);
        self.begun.fetch_add(1, Relaxed);
        Stream(Arc::clone(self))
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

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// All of a body that keeps its pace: of an announced length it is held before, else as it comes.
///
/// # Errors
/// 408, 413, 503 beyond the budget, or 400 if it breaks off.
async fn body(
    proxy: &Proxy,
    patience: Seconds,
    mut body: Incoming,
) -> Result<ReceivedBody, ApiError> {
    // A body above the whole budget never fits: 413, not 503.
    let max = proxy.body_max.min(proxy.bodies.max());
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
            Ok(None) => return Ok(ReceivedBody { bytes: all.freeze(), held }),
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
    let arrived = proxy.clock.now();
    let (head, incoming) = incoming.into_parts();
    let body = match intake::admit_head(proxy, &head) {
        Err(error) => Err(error),
        Ok(()) => body(proxy, patience, incoming).await,
    };
    // A websocket over h2 (RFC 8441) is not offered: clients see no SETTINGS_ENABLE_CONNECT_PROTOCOL.
    ReceivedRequest { head, body, upgrades: false, arrived, subject: None, peer }
}
