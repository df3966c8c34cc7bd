//! Connections to other gateways: the stream of loads to the leader, and queries of the leadership.

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tidegate_scheduler::gateways::STALE_AFTER;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::exchange::LoadExchange;
use super::lines::{LineError, LineReader, Lines, Sum, line, lines};
use super::pacing::Pacing;
use super::server::Status;
use super::{IDENTITY, LOADS_PATH, PING, STATUS_PATH};
use crate::runtime::reloadable::Reloadable;
use crate::upstream::{Address, AddressError, bearer};

/// Time limit for connecting, including TLS, and for the head of an answer.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Time-out of a leadership query.
const STATUS_MAX: Duration = Duration::from_millis(300);
/// Largest answer to a leadership query, in bytes.
const STATUS_BYTES_MAX: usize = 4096;
/// First and longest pause between attempts to reach the leader.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The exchange with another gateway failed.
#[derive(Debug, Error)]
pub(super) enum ClientError {
    /// Its URL.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The connection.
    #[error("cannot connect: {0}")]
    Io(#[from] io::Error),
    /// HTTP.
    #[error("HTTP/2: {0}")]
    Http(#[from] hyper::Error),
    /// A name or token that no header can carry.
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
    /// Its refusal.
    #[error("the gateway answers {0}")]
    Refused(StatusCode),
    /// A line.
    #[error(transparent)]
    Line(#[from] LineError),
    /// Its answer.
    #[error("the gateway's answer cannot be parsed")]
    Answer,
    /// Nothing in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The peer has ended its stream.
    #[error("the gateway has ended the stream")]
    Ended,
    /// An https address without `[gateways.tls]`.
    #[error("an https address needs [gateways.tls]")]
    NoTls,
}

type Body = Either<Empty<Bytes>, Lines>;

/// A connection to another gateway. Dropping it ends its task.
struct GatewayConnection {
    sender: http2::SendRequest<Body>,
    driver: JoinHandle<()>,
}

impl Drop for GatewayConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl LoadExchange {
    /// Reports to the current leader until the process ends.
    pub async fn run(self: Arc<Self>) {
        let mut leadership = self.parts.leadership.subscribe();
        let (mut pause, mut is_failing) = (PAUSES.0, false);
        loop {
            let leader = {
                let shown = leadership.borrow_and_update();
                shown.address.clone().filter(|_| shown.leads_until.is_none())
            };
            let Some(address) = leader else {
                if leadership.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let began = Instant::now();
            let Err(error) = self.report_to(&address).await else { continue };
            if began.elapsed() > PAUSES.1 {
                (pause, is_failing) = (PAUSES.0, false);
            }
            match std::mem::replace(&mut is_failing, true) {
                false => tracing::warn!(leader = %address, "loads are not exchanged: {error}"),
                true => tracing::debug!(leader = %address, "loads are not exchanged: {error}"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Reports to a leader and counts its sums, until another gateway leads.
    async fn report_to(&self, address: &str) -> Result<(), ClientError> {
        let mut connection = self.connect(address).await?;
        let body = || {
            let (reports, body) = lines();
            (reports, Either::Right(body))
        };
        let (reports, sums) =
            self.ask(&mut connection, Method::POST, address, LOADS_PATH, body).await?;
        tracing::info!(leader = %address, "loads are exchanged");
        let (mut sums, mut is_refused) = (LineReader::new(sums), false);
        let mut leadership = self.parts.leadership.subscribe();
        let mut pacing = Pacing::new();
        let stale = STALE_AFTER.to_duration();
        let mut deadline = Instant::now() + stale;
        loop {
            tokio::select! {
                () = pacing.look() => {
                    let (began, mark) = (Instant::now(), self.load_mark());
                    if pacing.is_due(mark, false) && let Ok(place) = reports.try_reserve() {
                        place.send(line(&self.own_report()));
                        pacing.made(mark, began);
                    }
                }
                sum = sums.next::<Sum>() => {
                    let sum = sum?.ok_or(ClientError::Ended)?;
                    let (others, gateways) = (sum.others, sum.gateways);
                    if let Some(others) = self.checked(address, others, gateways, &mut is_refused) {
                        self.count(&others, gateways);
                    }
                    if let Some(plan) = sum.plan {
                        self.follow(address, plan);
                    }
                    deadline = Instant::now() + stale;
                }
                () = sleep_until(deadline) => return Err(ClientError::Late(stale)),
                changed = leadership.changed() => {
                    let shown = leadership.borrow_and_update();
                    let same = shown.address.as_deref() == Some(address);
                    if changed.is_err() || !same || shown.leads_until.is_some() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Queries a gateway's identity and leadership.
    pub(super) async fn status_of(&self, address: &str) -> Result<Status, ClientError> {
        let asking = async {
            let mut connection = self.connect(address).await?;
            let none = || ((), Either::Left(Empty::new()));
            let ((), body) =
                self.ask(&mut connection, Method::GET, address, STATUS_PATH, none).await?;
            let body = Limited::new(body, STATUS_BYTES_MAX).collect().await;
            let body = body.map_err(|_| ClientError::Answer)?.to_bytes();
            serde_json::from_slice(&body).map_err(|_| ClientError::Answer)
        };
        timeout(STATUS_MAX, asking).await.unwrap_or(Err(ClientError::Late(STATUS_MAX)))
    }

    /// Sends a request with the token in force. While the token changes, the other gateway may still
    /// have the previous one, which is sent after a refusal. `body` makes a body, and what belongs
    /// to it.
    async fn ask<T>(
        &self,
        connection: &mut GatewayConnection,
        method: Method,
        address: &str,
        path: &str,
        body: impl Fn() -> (T, Body),
    ) -> Result<(T, Incoming), ClientError> {
        let tokens = self.parts.token.as_deref().map(Reloadable::current);
        let (current, previous) = match &tokens {
            Some(tokens) => (Some(tokens.current()), tokens.previous(Instant::now())),
            None => (None, None),
        };
        let uri = format!("{}{path}", address.trim_end_matches('/'));
        let mut answer = Err(ClientError::Refused(StatusCode::UNAUTHORIZED));
        for token in [Some(current), previous.map(Some)].into_iter().flatten() {
            let mut request = Request::builder()
                .method(method.clone())
                .uri(&uri)
                .header(IDENTITY, &self.parts.identity);
            if let Some(token) = token {
                request = request.header(AUTHORIZATION, bearer(token).map_err(http::Error::from)?);
            }
            let (with, body) = body();
            answer =
                connection.send(request.body(body)?).await.map(|sent| (with, sent.into_body()));
            if !matches!(answer, Err(ClientError::Refused(StatusCode::UNAUTHORIZED))) {
                break;
            }
        }
        answer
    }

    async fn connect(&self, address: &str) -> Result<GatewayConnection, ClientError> {
        let address = Address::parse(address)?;
        let connecting = async {
            let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
            stream.set_nodelay(true)?;
            match (&self.parts.connector, address.tls) {
                (Some(tls), true) => handshake(tls.connect(&address.host, stream).await?).await,
                (None, true) => Err(ClientError::NoTls),
                (_, false) => handshake(stream).await,
            }
        };
        timeout(CONNECT_MAX, connecting).await.unwrap_or(Err(ClientError::Late(CONNECT_MAX)))
    }
}

impl GatewayConnection {
    async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let sending = self.sender.send_request(request);
        let answer = match timeout(CONNECT_MAX, sending).await {
            Ok(answer) => answer?,
            Err(_) => return Err(ClientError::Late(CONNECT_MAX)),
        };
        match answer.status() {
            StatusCode::OK => Ok(answer),
            status => Err(ClientError::Refused(status)),
        }
    }
}

async fn handshake<Io>(io: Io) -> Result<GatewayConnection, ClientError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await?;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("connection to a gateway: {error}");
        }
    });
    Ok(GatewayConnection { sender, driver })
}
