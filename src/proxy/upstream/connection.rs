//! One HTTP/1.1 connection to an engine, driven by the task that uses it.
//!
//! One request and one answer at a time, so there is nothing that a task of its own would have to
//! drive: the task that waits for the answer reads the socket. What came in one read is handed on
//! as one piece, a stream that waits holds no buffer, and dropping the body closes the socket,
//! which is how an engine learns that a client left. The format is `tidegate_http1`'s business.

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
use super::pool::Idle;
use super::socket::Socket;
use crate::runtime::thread_buffer;

/// Bytes of a request written per poll: about 0.1 ms.
const WRITE_MAX: usize = 256 << 10;
/// A connection that ends so soon after a request was on it was most likely closed before it came.
const STALE_WITHIN: Seconds = Seconds(1.0);

/// Why an exchange brought no answer, or not all of it.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// No connection: nothing was sent.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// No connection within the limit: nothing was sent.
    #[error("no connection within {0:?}")]
    ConnectTimeout(std::time::Duration),
    /// A pooled connection turned out to be closed already.
    #[error("a kept-alive connection was already closed: {source}")]
    Stale {
        /// How that was seen.
        source: io::Error,
        /// All of the request was on the connection by then: most likely the engine has closed it
        /// before it came, which the proxy cannot tell.
        sent: bool,
    },
    /// The connection failed while the answer was due.
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

/// Why an answer that had begun did not end.
#[derive(Debug, Error)]
pub enum BrokenOff {
    /// The socket failed.
    #[error("reading from the engine failed: {0}")]
    Io(#[from] io::Error),
    /// The engine's head is not HTTP/1.1.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// Its body is not what its head said.
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
pub(super) enum Rest {
    /// Another exchange.
    Quiet,
    /// Nothing: it has ended.
    Ended,
    /// Nothing: the engine has sent bytes that belong to no answer.
    Surplus,
}

/// A connection between two exchanges.
pub(super) struct Link {
    socket: Socket,
    /// Whether it has carried an exchange before.
    reused: bool,
    /// Whose reactor reads it: used by another runtime, every read wakes two threads.
    opened_in: Id,
}

/// An engine's answer, of which the head is here.
pub struct Answer {
    /// Its head.
    pub head: Head,
    /// Its body, still on the wire.
    pub body: UpstreamBody,
}

/// An answer's status and headers, but for those of its connection.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
}

/// An answer's body. Once read to its end the connection goes back to its pool; dropped earlier,
/// the connection is closed, and the engine aborts the request.
pub struct UpstreamBody {
    /// Came with the head.
    first: Option<Bytes>,
    reader: BodyReader,
    /// `None` once the exchange is over.
    link: Option<Link>,
    keeps_alive: bool,
    home: Arc<Idle>,
}

/// An exchange up to the answer's head.
struct Exchange<'a> {
    link: Link,
    home: &'a Idle,
    request: Outgoing,
    /// When it began, until something had to be waited for: a request that goes out at once is on the
    /// wire by then.
    began: Option<Moment>,
    /// Bytes of the request on the wire.
    sent: usize,
    /// When all of it was.
    flushed: Option<Moment>,
    /// Writing failed; the engine may have answered before it closed.
    unsent: Option<io::Error>,
    /// A head of which the rest is still to come.
    begun: Vec<u8>,
}

impl Link {
    pub(super) fn new(socket: Socket) -> Link {
        Link { socket, reused: false, opened_in: Handle::current().id() }
    }

    /// Is a pooled connection good for another exchange? Bytes that came since the last answer are
    /// no part of any answer: the next client would read them as its own. The kernel is asked, since
    /// the reactor may not have heard of them yet: one `recv` an exchange.
    pub(super) fn rest(&mut self) -> Rest {
        let mut context = Context::from_waker(Waker::noop());
        match self.socket.at_rest() {
            // TLS may hold decrypted bytes, or an end that the reactor has seen.
            Rest::Quiet if self.socket.poll_read(&mut context, &mut [0]).is_ready() => Rest::Ended,
            rest => rest,
        }
    }

    /// Send a request, which begins at `now`, and wait for the answer's head.
    pub(super) async fn exchange(
        self,
        request: Outgoing,
        home: Arc<Idle>,
        now: Moment,
    ) -> Result<Answer, ExchangeError> {
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
        // An idle time-out that the engine announces (RFC 9110, 15.5.9); it met the next request.
        if head.status == StatusCode::REQUEST_TIMEOUT && exchange.is_stale() {
            let end = io::ErrorKind::ConnectionAborted.into();
            return Err(exchange.stale(end));
        }
        // An engine may refuse a request that it has not read, but not serve it.
        if exchange.flushed.is_none() && head.status.is_success() {
            return Err(ExchangeError::Closed);
        }
        // What is left of a request would be read as the beginning of the next.
        let keeps_alive = head.keeps_alive && whole && exchange.flushed.is_some();
        if !whole {
            home.suspect();
        }
        let mut link = exchange.link;
        link.reused = true;
        let mut body = UpstreamBody { first, reader, link: Some(link), keeps_alive, home };
        body.settle();
        Ok(Answer { head: Head { status: head.status, headers: head.headers }, body })
    }
}

/// A head, what reads its body, and what came of that with it; false if more came than the answer.
type Begun = (ResponseHead, BodyReader, Option<Bytes>, bool);

impl Exchange<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Begun, ExchangeError>> {
        // An engine may answer before it has read all: to both sides of the connection at once.
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
                // Other tasks of this thread run between two large writes.
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

    /// Bytes of the answer: its head, once all of it is here.
    fn take(&mut self, bytes: &mut [u8]) -> Result<Option<Begun>, BrokenOff> {
        if !self.begun.is_empty() {
            self.begun.extend_from_slice(bytes);
            let mut all = std::mem::take(&mut self.begun);
            return self.read(&mut all);
        }
        self.read(bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<Option<Begun>, BrokenOff> {
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

    /// The connection ended without an answer.
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

    /// A keep-alive connection that the engine closed in the meantime: the request may go again. One
    /// that it closed long after the request was on it is none: the engine was at work.
    fn is_stale(&self) -> bool {
        let soon = |sent: Moment| self.home.now() - sent < STALE_WITHIN;
        self.link.reused && self.begun.is_empty() && self.flushed.is_none_or(soon)
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
                self.settle();
                Poll::Ready(data.map(Ok))
            }
            Err(error) => {
                self.link = None;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    /// The same, to wait for.
    pub async fn data(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        poll_fn(|context| self.poll_data(context)).await
    }

    /// The connection itself, and what came of it behind the head: after a 101. `None`: the body has
    /// ended.
    pub fn into_socket(self) -> Option<(Bytes, Socket)> {
        Some((self.first.unwrap_or_default(), self.link?.socket))
    }

    /// Returns the number of bytes still to read, if the engine sent a length.
    pub fn remaining(&self) -> Option<u64> {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        self.reader.remaining().map(|rest| rest + first)
    }

    /// The exchange is over: keep the connection if it can carry another, and if it is this
    /// runtime's own. The prober's carries one request, and that is all.
    fn settle(&mut self) {
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
