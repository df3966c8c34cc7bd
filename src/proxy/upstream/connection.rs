//! One HTTP/1.1 connection to an engine, driven by the task that uses it.
//!
//! A connection carries one exchange at a time, so that the task that awaits the answer reads the socket.
//! The bytes of one read are forwarded as one piece, and a waiting stream holds no buffer. Dropping the
//! body closes the socket, on which the engine aborts the request. `tidegate_http1` parses the format.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use thiserror::Error;
use tidegate_http1::{BodyError, BodyReader, HeadError, ResponseHead, read_response, read_upgrade};
use tidegate_types::{Moment, Seconds};
use tokio::runtime::{Handle, Id};

use super::outgoing::Outgoing;
use super::pool::IdlePool;
use super::socket::Socket;
use crate::runtime::thread_buffer;

/// Bytes of a request written per poll: about 0.1 ms.
const WRITE_MAX: usize = 256 << 10;
/// A reused connection that closes within this time of the request was most likely closed before the
/// request arrived.
const STALE_WITHIN: Seconds = Seconds(1.0);

/// Why an exchange failed.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// No connection: nothing was sent.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// No connection within the limit: nothing was sent.
    #[error("no connection within {0:?}")]
    ConnectTimeout(std::time::Duration),
    /// A reused connection was already closed by the engine.
    #[error("a kept-alive connection was already closed: {source}")]
    Stale {
        source: io::Error,
        /// Whether the whole request was written. The engine has most likely closed the connection before
        /// it arrived, which the proxy cannot verify.
        sent: bool,
    },
    /// The connection failed before or within the answer.
    #[error("the connection failed: {0}")]
    Broken(#[from] BrokenOff),
    /// The engine closed the connection without an answer.
    #[error("the connection was closed before an answer")]
    Closed,
    /// No answer within the limit.
    #[error("no answer within {0:?}")]
    AnswerTimeout(std::time::Duration),
    /// The answer is larger than tidegate reads.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

/// Why an answer is incomplete.
#[derive(Debug, Error)]
pub enum BrokenOff {
    /// The socket failed.
    #[error("reading from the engine failed: {0}")]
    Io(#[from] io::Error),
    /// The engine's head is not HTTP/1.1.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The body contradicts the head.
    #[error(transparent)]
    Body(#[from] BodyError),
}

impl ExchangeError {
    /// Returns whether the engine certainly received no byte of the request.
    pub fn before_sending(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::ConnectTimeout(_) | Self::Stale { sent: false, .. })
    }
}

/// State of a connection between two exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdleState {
    /// Reusable.
    Quiet,
    /// Closed by the engine.
    Ended,
    /// Not reusable: the engine has sent bytes beyond its answer.
    Surplus,
}

/// An idle connection.
pub(super) struct EngineConnection {
    socket: Socket,
    /// Whether it has carried an exchange before.
    reused: bool,
    /// Runtime whose reactor reads the socket. In another runtime, every read would wake two threads.
    opened_in: Id,
}

/// An engine's answer whose head has arrived.
pub struct EngineAnswer {
    pub head: Head,
    pub body: UpstreamBody,
}

/// Status and end-to-end headers of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
}

/// An answer's body. At its end the connection is returned to the pool. Dropped earlier, it closes the
/// connection, on which the engine aborts the request.
pub struct UpstreamBody {
    /// Bytes that arrived with the head.
    first: Option<Bytes>,
    reader: BodyReader,
    /// `None` once the exchange is over.
    link: Option<EngineConnection>,
    keeps_alive: bool,
    home: Arc<IdlePool>,
}

/// An exchange up to the answer's head.
struct Exchange<'a> {
    link: EngineConnection,
    home: &'a IdlePool,
    request: Outgoing,
    /// Start of the exchange; `None` after the first wait. A request written before it counts as sent then.
    began: Option<Moment>,
    /// Bytes of the request written.
    sent: usize,
    /// Time at which the whole request was written.
    flushed: Option<Moment>,
    /// Write error; the engine may have answered before it closed.
    unsent: Option<io::Error>,
    /// Bytes of an incomplete head.
    begun: Vec<u8>,
}

impl EngineConnection {
    pub(super) fn new(socket: Socket) -> EngineConnection {
        EngineConnection { socket, reused: false, opened_in: Handle::current().id() }
    }

    /// Returns whether a pooled connection is reusable. Bytes received since the last answer belong to no
    /// answer; the next client would read them as its own. The kernel is queried, because the reactor may
    /// not have polled the socket yet: one `recv` per exchange.
    pub(super) fn idle_state(&mut self) -> IdleState {
        let mut context = Context::from_waker(Waker::noop());
        match self.socket.idle_state() {
            // TLS may hold decrypted bytes or a received close.
            IdleState::Quiet if self.socket.poll_read(&mut context, &mut [0]).is_ready() => {
                IdleState::Ended
            }
            rest => rest,
        }
    }

    /// Sends a request at `now` and awaits the head of the answer.
    pub(super) async fn exchange(
        self,
        request: Outgoing,
        home: Arc<IdlePool>,
        now: Moment,
    ) -> Result<EngineAnswer, ExchangeError> {
        let mut exchange = Exchange {
            link: self,
            home: &home,
            request,
            began: Some(now),
            sent: 0,
            flushed: None,
            unsent: None,
            begun: Vec::new(),
        };
        let (head, reader, first, whole) = poll_fn(|context| exchange.poll(context)).await?;
        // An announced idle time-out (RFC 9110, 15.5.9) that crossed this request.
        if head.status == StatusCode::REQUEST_TIMEOUT && exchange.is_stale() {
            let end = io::ErrorKind::ConnectionAborted.into();
            return Err(exchange.stale(end));
        }
        // A success before the whole request was written is invalid; an early error status is
        // valid.
        if exchange.flushed.is_none() && head.status.is_success() {
            return Err(ExchangeError::Closed);
        }
        // The unsent rest of a request would be read as the next request.
        let keeps_alive = head.keeps_alive && whole && exchange.flushed.is_some();
        if !whole {
            home.suspect();
        }
        let mut link = exchange.link;
        link.reused = true;
        let mut body = UpstreamBody { first, reader, link: Some(link), keeps_alive, home };
        body.finish();
        Ok(EngineAnswer { head: Head { status: head.status, headers: head.headers }, body })
    }
}

/// A head, the reader of its body, body bytes that arrived with it, and whether the read ended
/// there.
type StartedAnswer = (ResponseHead, BodyReader, Option<Bytes>, bool);

impl Exchange<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<StartedAnswer, ExchangeError>> {
        // An engine may answer before it has read the whole request: writes and reads are polled together.
        if let Poll::Ready(Err(error)) = self.poll_send(context) {
            self.sent = self.request.len();
            self.unsent = Some(error);
        }
        self.began = None;
        thread_buffer::with(|scratch| {
            loop {
                match ready!(self.link.socket.poll_read(context, scratch)) {
                    Ok(0) => return Poll::Ready(Err(self.closed())),
                    Ok(read) => {
                        if let Some(begun) = self.take(&mut scratch[..read])? {
                            return Poll::Ready(Ok(begun));
                        }
                    }
                    Err(error) => return Poll::Ready(Err(self.failed(error))),
                }
            }
        })
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let until = self.sent + WRITE_MAX;
        while self.sent < self.request.len() {
            if self.sent >= until {
                // Lets other tasks of this thread run between two large writes.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let rest = self.request.rest(self.sent, until - self.sent);
            match ready!(self.link.socket.poll_write(context, &rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        if self.flushed.is_none() && self.unsent.is_none() {
            ready!(self.link.socket.poll_flush(context))?;
            self.flushed = self.began.or_else(|| Some(self.home.now()));
        }
        Poll::Ready(Ok(()))
    }

    /// Takes bytes of the answer. Returns the head once it is complete.
    fn take(&mut self, bytes: &mut [u8]) -> Result<Option<StartedAnswer>, BrokenOff> {
        if !self.begun.is_empty() {
            self.begun.extend_from_slice(bytes);
            let mut all = std::mem::take(&mut self.begun);
            return self.read(&mut all);
        }
        self.read(bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<Option<StartedAnswer>, BrokenOff> {
        let mut at = 0;
        loop {
            let head = match self.request.upgrades {
                true => read_upgrade(&bytes[at..])?,
                false => read_response(&self.request.method, &bytes[at..])?,
            };
            let Some(head) = head else {
                self.begun.extend_from_slice(&bytes[at..]);
                return Ok(None);
            };
            at += head.length;
            let is_last = head.status == StatusCode::SWITCHING_PROTOCOLS;
            if head.status.is_informational() && !is_last {
                continue;
            }
            let rest = &mut bytes[at..];
            let mut reader = BodyReader::new(head.framing);
            let piece = reader.read(rest)?;
            let data = &rest[piece.data];
            let first = (!data.is_empty()).then(|| Bytes::copy_from_slice(data));
            let whole = piece.consumed == rest.len();
            return Ok(Some((head, reader, first, whole)));
        }
    }

    /// Error of a connection that closed without an answer.
    fn closed(&mut self) -> ExchangeError {
        match (self.is_stale(), self.unsent.take()) {
            (true, unsent) => {
                let end = || io::ErrorKind::UnexpectedEof.into();
                self.stale(unsent.unwrap_or_else(end))
            }
            (false, Some(error)) => BrokenOff::from(error).into(),
            (false, None) => ExchangeError::Closed,
        }
    }

    fn failed(&self, error: io::Error) -> ExchangeError {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let closed = matches!(
            error.kind(),
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
        );
        match closed && self.is_stale() {
            true => self.stale(error),
            false => BrokenOff::from(error).into(),
        }
    }

    /// Returns whether the engine has closed a reused connection before the request arrived, so that it can
    /// be sent again. A close long after the request was written is a failure of the engine.
    fn is_stale(&self) -> bool {
        let is_recent = |sent: Moment| self.home.now() - sent < STALE_WITHIN;
        self.link.reused && self.begun.is_empty() && self.flushed.is_none_or(is_recent)
    }

    fn stale(&self, source: io::Error) -> ExchangeError {
        ExchangeError::Stale { source, sent: self.flushed.is_some() }
    }
}

impl UpstreamBody {
    /// Returns the data of one read. `None` at the body's end.
    pub fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BrokenOff>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        let Some(link) = &mut self.link else { return Poll::Ready(None) };
        let polled = thread_buffer::with(|scratch| {
            loop {
                let read = ready!(link.socket.poll_read(context, scratch))?;
                if read == 0 {
                    self.keeps_alive = false;
                    self.reader.close()?;
                    return Poll::Ready(Ok(None));
                }
                let piece = self.reader.read(&mut scratch[..read])?;
                if piece.consumed < read {
                    self.keeps_alive = false;
                    self.home.suspect();
                }
                if !piece.data.is_empty() {
                    return Poll::Ready(Ok(Some(Bytes::copy_from_slice(&scratch[piece.data]))));
                }
                if self.reader.is_done() {
                    return Poll::Ready(Ok(None));
                }
            }
        });
        match ready!(polled) {
            Ok(data) => {
                self.finish();
                Poll::Ready(data.map(Ok))
            }
            Err(error) => {
                self.link = None;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    /// Async form of [`UpstreamBody::poll_data`].
    pub async fn data(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        poll_fn(|context| self.poll_data(context)).await
    }

    /// Returns the socket and the bytes after the head, for a 101. `None` if the body has ended.
    pub fn into_socket(self) -> Option<(Bytes, Socket)> {
        Some((self.first.unwrap_or_default(), self.link?.socket))
    }

    /// Returns the number of bytes still to read, if the engine sent a length.
    pub fn remaining(&self) -> Option<u64> {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        self.reader.remaining().map(|rest| rest + first)
    }

    /// At the end of the body, returns a reusable connection to the pool if this runtime has opened it.
    /// Connections of other runtimes, such as the prober's, are closed.
    fn finish(&mut self) {
        if !self.reader.is_done() {
            return;
        }
        let Some(link) = self.link.take() else { return };
        let own = Handle::try_current().is_ok_and(|here| here.id() == link.opened_in);
        if own && self.keeps_alive {
            self.home.put(link);
        }
    }
}
