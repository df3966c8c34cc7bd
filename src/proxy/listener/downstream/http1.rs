//! HTTP/1.1 and 1.0 with a client: requests in sequence until either side closes the connection.
//! `tidegate_http1` parses the format, `request/handle.rs` handles the requests.
//!
//! hyper's codec is used for h2 only: docs/decisions/0002-http1-codec.md.

use http::request::Parts;
use http::{Method, Request, Response};
use http_body::Body;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use thiserror::Error;
use tidegate_engine::{ApiError, ErrorForm};
use tidegate_http1::{
    CONTINUE, Date, Framing, HeadError, RequestHead, ResponseFraming, write_response,
};
use tidegate_settings::ServerSettings;
use tidegate_types::Seconds;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, sleep_until, timeout};

use super::presence::{Presence, PresenceStep};
use super::reading::{BodyReadError, HeadReadError, RequestReader};
use super::writing::ResponseWriter;
use crate::dispatch::context::Proxy;
use crate::dispatch::settings_in_force::SettingsInForce;
use crate::listener::client_socket::DetectReset;
use crate::listener::front::ConnectedClient as Peer;
use crate::request::body::RelayBody;
use crate::request::handle as request;
use crate::request::intake::{self, ReceivedBody};
use crate::request::respond;
use crate::request::tunnel::Tunnel;

/// Time for which unread bytes are drained after an early answer. A close with unread bytes sends a
/// reset, which can discard the answer (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(2);

thread_local! {
    /// The `Date` value written last by this thread.
    static DATE: Cell<Option<Date>> = const { Cell::new(None) };
}

/// Why a connection was closed early.
#[derive(Debug, Error)]
enum ClosedEarly {
    #[error("the client left before its answer")]
    Left,
    #[error("the client does not read its answer")]
    Stalled,
    #[error(transparent)]
    Body(BodyReadError),
    #[error("writing to the client failed: {0}")]
    Io(#[from] io::Error),
}

/// State of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterAnswer {
    /// Open for the next request.
    Next,
    /// Closed; all received bytes were read.
    Close,
    /// Closed; the client may still be sending.
    CloseUnread,
}

/// Unread part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnreadPart {
    None,
    /// A refused body, whose end is unknown.
    Unread,
}

/// Client state that an answer depends on.
struct ConnectionState {
    method: Method,
    is_1_1: bool,
    after: AfterAnswer,
    presence: Presence,
    /// Time without progress after which the client counts as stalled.
    stall: Duration,
}

/// Serves a connection until the client or the proxy closes it.
pub async fn serve<Io>(
    proxy: Arc<Proxy>,
    patience: Seconds,
    peer: Peer,
    io: Io,
    mut stop: watch::Receiver<bool>,
) where
    Io: AsyncRead + AsyncWrite + DetectReset + Send + Unpin,
{
    let clock = proxy.clock;
    let mut reader = RequestReader::new(io, patience.to_duration());
    let mut stopping = false;
    let mut since = clock.now();
    // One timer for the whole connection: a timer per request would be armed and disarmed each time.
    let mut idle = pin!(sleep_until(clock.instant(since + patience)));
    loop {
        let head = tokio::select! {
            biased;
            head = reader.head() => head,
            () = idle.as_mut() => {
                let until = since + patience;
                if clock.now() >= until {
                    break;
                }
                idle.as_mut().reset(clock.instant(until));
                continue;
            }
            _ = stop.changed(), if !stopping => {
                stopping = true;
                if !reader.has_begun() {
                    break;
                }
                continue;
            }
        };
        let served = match head {
            Ok(incoming) => exchange(&proxy, &peer, &mut reader, incoming, stopping).await,
            Err(HeadReadError::Head(error)) => refuse(&proxy, &mut reader, error).await,
            Err(HeadReadError::Closed | HeadReadError::Io(_)) => break,
        };
        since = clock.now();
        match served {
            Ok(AfterAnswer::Next) => {}
            Ok(after) => {
                let closing = async {
                    reader.io.shutdown().await.ok();
                    if after == AfterAnswer::CloseUnread || reader.has_begun() {
                        reader.drain().await;
                    }
                };
                timeout(LINGER, closing).await.ok();
                break;
            }
            Err(ended) => {
                // Reported by the access log.
                tracing::debug!("client connection ended: {ended}");
                break;
            }
        }
    }
}

/// Handles one request and its answer.
async fn exchange<Io>(
    proxy: &Arc<Proxy>,
    peer: &Peer,
    reader: &mut RequestReader<Io>,
    incoming: RequestHead,
    stopping: bool,
) -> Result<AfterAnswer, ClosedEarly>
where
    Io: AsyncRead + AsyncWrite + DetectReset + Send + Unpin,
{
    let (arrived, settings) = (proxy.clock.now(), proxy.settings.load_full());
    let RequestHead { method, uri, headers, framing, expects_continue, is_1_1, .. } = incoming;
    let upgrades = incoming.upgrades;
    // Bytes after a refused handshake must not be parsed as a request.
    let keeps_alive = incoming.keeps_alive && !upgrades;
    let mut head = Request::new(()).into_parts().0;
    (head.method, head.uri, head.headers) = (method.clone(), uri, headers);
    let (body, rest) = read(proxy, &settings, reader, &head, (framing, expects_continue)).await?;
    let after = match (rest, keeps_alive && !stopping) {
        (UnreadPart::None, true) => AfterAnswer::Next,
        (UnreadPart::None, false) => AfterAnswer::Close,
        (UnreadPart::Unread, _) => AfterAnswer::CloseUnread,
    };
    let (subject, peer) = (peer.subject.clone(), peer.address);
    let ServerSettings { half_close, client_stall, .. } = settings.values.server;
    let received =
        intake::ReceivedRequest { settings, head, body, upgrades, arrived, subject, peer };
    // Boxed: unboxed, the connection would keep 5 KB during a stream. Constructed in place, because
    // moving the future would copy it.
    let room = Box::new_uninit();
    let handling = Box::into_pin(Box::write(room, request::handle(Arc::clone(proxy), received)));
    let mut presence = Presence::new(half_close);
    let response = answered(reader, handling, is_1_1, &mut presence).await?;
    let client =
        ConnectionState { method, is_1_1, after, presence, stall: client_stall.to_duration() };
    send(proxy, reader, client, response).await
}

/// Reads a request's body. Returns it or its refusal, and the unread part.
async fn read<Io>(
    proxy: &Proxy,
    settings: &SettingsInForce,
    reader: &mut RequestReader<Io>,
    head: &Parts,
    (framing, expects_continue): (Framing, bool),
) -> Result<(Result<ReceivedBody, ApiError>, UnreadPart), ClosedEarly>
where
    Io: AsyncRead + AsyncWrite + DetectReset + Send + Unpin,
{
    // A body above the whole budget never fits: 413, not 503.
    let max = settings.values.server.body_max_bytes.min(proxy.bodies.max());
    let admitted = match intake::admit_head(proxy, settings, head) {
        Ok(admitted) => admitted,
        // A body that arrived with its head is skipped, and the connection stays open.
        Err(refused) => return Ok((Err(refused), skip(reader, framing))),
    };
    // A length above the maximum is refused below.
    let announced = match framing {
        Framing::Length(length) => usize::try_from(length).ok().filter(|length| *length <= max),
        Framing::Chunked | Framing::UntilClose => None,
    };
    let Some(mut held) = proxy.bodies.try_hold(announced.unwrap_or(0)) else {
        return Ok((Err(respond::body_budget_exhausted()), skip(reader, framing)));
    };
    if expects_continue && !reader.has_body(framing) {
        reader.io.write_all(CONTINUE).await?;
        reader.io.flush().await?;
    }
    match reader.body(framing, max, &mut held).await {
        Ok(bytes) => Ok((Ok(ReceivedBody { head: admitted, bytes, held }), UnreadPart::None)),
        Err(BodyReadError::NoRoom) => {
            Ok((Err(respond::body_budget_exhausted()), UnreadPart::Unread))
        }
        Err(BodyReadError::Stalled) => Ok((Err(ApiError::body_timeout()), UnreadPart::Unread)),
        Err(BodyReadError::TooLarge) => Ok((Err(ApiError::too_large(max)), UnreadPart::Unread)),
        Err(error @ BodyReadError::Malformed(_)) => {
            Ok((Err(ApiError::bad_request(error.to_string(), None)), UnreadPart::Unread))
        }
        Err(error) => Err(ClosedEarly::Body(error)),
    }
}

/// Skips a refused body that arrived with its head; otherwise it remains unread.
fn skip<Io: AsyncRead + Unpin>(reader: &mut RequestReader<Io>, framing: Framing) -> UnreadPart {
    if reader.skip_body(framing) { UnreadPart::None } else { UnreadPart::Unread }
}

/// Answers an invalid head with an error in OpenAI's format.
async fn refuse<Io>(
    proxy: &Proxy,
    reader: &mut RequestReader<Io>,
    error: HeadError,
) -> Result<AfterAnswer, ClosedEarly>
where
    Io: AsyncRead + AsyncWrite + DetectReset + Send + Unpin,
{
    let mut answer =
        ApiError::bad_request(format!("The request was not understood: {error}."), None);
    answer.status = match error {
        HeadError::TooLarge => 431,
        HeadError::Coding => 501,
        HeadError::Version => 505,
        HeadError::Malformed(_)
        | HeadError::BareLf
        | HeadError::Length
        | HeadError::Ambiguous
        | HeadError::Host
        | HeadError::Switching => 400,
    };
    tracing::debug!("invalid request head: {error}");
    proxy.metrics.refused(None, answer.status);
    let settings = proxy.settings.load_full();
    let server = &settings.values.server;
    let client = ConnectionState {
        method: Method::GET,
        is_1_1: true,
        after: AfterAnswer::CloseUnread,
        presence: Presence::new(server.half_close),
        stall: server.client_stall.to_duration(),
    };
    send(proxy, reader, client, respond::error(&answer, ErrorForm::OpenAi)).await
}

/// Awaits the answer. If the client leaves, the request and its legs are dropped.
async fn answered<Io: AsyncRead + AsyncWrite + DetectReset + Unpin>(
    reader: &mut RequestReader<Io>,
    mut handling: Pin<Box<impl Future<Output = Response<RelayBody>>>>,
    is_1_1: bool,
    presence: &mut Presence,
) -> Result<Response<RelayBody>, ClosedEarly> {
    // A started interim response is written to its end before the next response begins.
    let mut interim: &[u8] = &[];
    let response = poll_fn(|context| {
        if let Poll::Ready(response) = handling.as_mut().poll(context) {
            return Poll::Ready(Ok(response));
        }
        loop {
            while !interim.is_empty() {
                match Pin::new(&mut reader.io).poll_write(context, interim) {
                    Poll::Ready(Ok(written)) if written > 0 => interim = &interim[written..],
                    Poll::Ready(_) => return Poll::Ready(Err(ClosedEarly::Left)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            match ready!(poll_presence(reader, presence, context)) {
                None => return Poll::Ready(Err(ClosedEarly::Left)),
                // HTTP/1.0 has no interim responses.
                Some(PresenceStep::Probe) if is_1_1 => interim = CONTINUE,
                Some(PresenceStep::Probe | PresenceStep::Check) => {}
            }
        }
    })
    .await?;
    reader.io.write_all(interim).await?;
    Ok(response)
}

/// Returns the next presence step; `None` if the client has left.
fn poll_presence<Io: AsyncRead + DetectReset + Unpin>(
    reader: &mut RequestReader<Io>,
    presence: &mut Presence,
    context: &mut Context<'_>,
) -> Poll<Option<PresenceStep>> {
    if !presence.is_half() {
        let how = ready!(reader.poll_closed(context));
        if presence.closed(how) {
            return Poll::Ready(None);
        }
    }
    let step = ready!(presence.poll_step(context));
    Poll::Ready(Some(step).filter(|_| !reader.io.is_reset()))
}

async fn send<Io>(
    proxy: &Proxy,
    reader: &mut RequestReader<Io>,
    client: ConnectionState,
    response: Response<RelayBody>,
) -> Result<AfterAnswer, ClosedEarly>
where
    Io: AsyncRead + AsyncWrite + DetectReset + Send + Unpin,
{
    let ConnectionState { method, is_1_1, mut after, mut presence, stall: patience } = client;
    let (head, body) = response.into_parts();
    if let RelayBody::Websocket(tunnel) = body {
        return run_tunnel(proxy, reader, patience, &head, *tunnel).await;
    }
    let framing = ResponseFraming::choose(&method, head.status, body.size_hint().exact(), is_1_1);
    let ends = framing == ResponseFraming::UntilClose || proxy.is_draining();
    if ends && after == AfterAnswer::Next {
        after = AfterAnswer::Close;
    }
    let keeps_alive = after == AfterAnswer::Next;
    let date = || date(proxy);
    let written = write_response(head.status, &head.headers, framing, is_1_1, keeps_alive, date);
    let mut writer = ResponseWriter::new(written, framing, body);
    let mut stall = Stall::default();
    poll_fn(|context| match writer.poll_send(&mut reader.io, context) {
        Poll::Ready(sent) => Poll::Ready(sent.map_err(ClosedEarly::Io)),
        Poll::Pending if stall.is_over(writer.blocked_at(), patience, context) => {
            Poll::Ready(Err(ClosedEarly::Stalled))
        }
        Poll::Pending => match ready!(poll_presence(reader, &mut presence, context)) {
            None => Poll::Ready(Err(ClosedEarly::Left)),
            Some(step) => {
                if step == PresenceStep::Probe {
                    writer.body().probe();
                }
                // Polled again for the probe and for the timer of the next step.
                context.waker().wake_by_ref();
                Poll::Pending
            }
        },
    })
    .await?;
    Ok(after)
}

/// Returns the current `Date` value; the thread's last one if it is still valid.
fn date(proxy: &Proxy) -> Date {
    let now = proxy.clock.wall(proxy.clock.now());
    let date = DATE.get().map_or_else(|| Date::at(now), |date| date.or_at(now));
    DATE.set(Some(date));
    date
}

/// Sends the 101 of a websocket and runs the tunnel until its end.
async fn run_tunnel<Io>(
    proxy: &Proxy,
    reader: &mut RequestReader<Io>,
    stall: Duration,
    head: &http::response::Parts,
    tunnel: Tunnel,
) -> Result<AfterAnswer, ClosedEarly>
where
    Io: AsyncRead + AsyncWrite + DetectReset + Send + Unpin,
{
    let framing = ResponseFraming::Websocket;
    let head = write_response(head.status, &head.headers, framing, true, false, || date(proxy));
    let sending = async {
        reader.io.write_all(&head).await?;
        reader.io.flush().await
    };
    let sent = timeout(stall, sending).await;
    sent.map_err(|_| ClosedEarly::Stalled)??;
    let (ahead, idle) = (reader.take_ahead(), Seconds::from(reader.patience));
    // Boxed: unboxed, it would enlarge every connection's future.
    Box::pin(tunnel.run(&mut reader.io, ahead, idle)).await;
    Ok(AfterAnswer::Close)
}

/// Detects a client that does not read, whose answer occupies an engine.
#[derive(Default)]
struct Stall {
    /// Bytes written when the write blocked, and the timer of the stall limit. Set at the first blocked
    /// write, which most answers never have.
    blocked: Option<(u64, Pin<Box<Sleep>>)>,
}

impl Stall {
    /// Returns whether the client has read nothing for the stall limit; `at`: bytes written when blocked.
    fn is_over(&mut self, at: Option<u64>, patience: Duration, context: &mut Context<'_>) -> bool {
        let Some(at) = at else {
            self.blocked = None;
            return false;
        };
        if self.blocked.as_ref().is_none_or(|(before, _)| *before != at) {
            self.blocked = Some((at, Box::pin(sleep(patience))));
        }
        self.blocked.as_mut().is_some_and(|(_, sleep)| sleep.as_mut().poll(context).is_ready())
    }
}
