//! One HTTP/1.1 connection to an engine, driven by whoever uses it.
//!
//! hyper splits a client connection into a sender and a driver future, which is usually spawned.
//! Here the driver is polled by the task that waits for the answer: chunks that came in one read
//! are handed on in one poll (and so leave in one write), no task is woken to wake another, and
//! dropping the body closes the socket, which is how an engine learns that a client left.

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Handle, Id};

use super::doorbell::Doorbell;
use super::pool::Idle;

/// What a connection runs over: TCP, or TLS on top of it.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Why an exchange brought no answer, or not all of it.
#[derive(Debug, Error)]
pub enum ExchangeError {
    /// No connection: nothing was sent.
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    /// No connection within the limit: nothing was sent.
    #[error("no connection within {0:?}")]
    ConnectTimeout(std::time::Duration),
    /// A pooled connection turned out to be closed before the request was on it.
    #[error("a kept-alive connection was already closed: {0}")]
    Stale(#[source] hyper::Error),
    /// The connection failed while the answer was due.
    #[error("the connection failed: {0}")]
    Broken(#[source] hyper::Error),
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

impl ExchangeError {
    /// Did the engine certainly see nothing of the request?
    pub fn before_sending(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::ConnectTimeout(_) | Self::Stale(_))
    }
}

/// A connection between two exchanges. It lives in a box: hyper's halves are a kilobyte, and a
/// request hands them on a dozen times.
pub(super) struct Link {
    sender: SendRequest<Full<Bytes>>,
    driver: Connection<TokioIo<Box<dyn Transport>>, Full<Bytes>>,
    bell: Doorbell,
    /// Has it carried an exchange before?
    reused: bool,
    /// Whose reactor reads it: used by another runtime, every read wakes two threads.
    opened_in: Id,
}

/// The head of an engine's answer; its body is still on the wire.
pub type Answer = Response<UpstreamBody>;

/// An answer's body. Once read to its end the connection goes back to its pool; dropped earlier,
/// the connection is closed, and the engine aborts the request.
pub struct UpstreamBody {
    incoming: Incoming,
    link: Option<Box<Link>>,
    home: Arc<Idle>,
}

impl Link {
    pub(super) async fn handshake(
        transport: Box<dyn Transport>,
    ) -> Result<Box<Link>, ExchangeError> {
        let (sender, driver) = Builder::new()
            .handshake(TokioIo::new(transport))
            .await
            .map_err(ExchangeError::Broken)?;
        Ok(Box::new(Link {
            sender,
            driver,
            bell: Doorbell::new(),
            reused: false,
            opened_in: Handle::current().id(),
        }))
    }

    /// Is a pooled connection still good? Sees a FIN that the reactor has noticed; costs no
    /// system call otherwise.
    pub(super) fn is_open(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(&mut self.driver).poll(&mut context).is_pending() && self.sender.is_ready()
    }

    /// Send a request and wait for the answer's head.
    pub(super) async fn exchange(
        mut self: Box<Self>,
        request: Request<Full<Bytes>>,
        home: Arc<Idle>,
    ) -> Result<Answer, ExchangeError> {
        let reused = self.reused;
        let failed = |error: hyper::Error| match reused && is_stale(&error) {
            true => ExchangeError::Stale(error),
            false => ExchangeError::Broken(error),
        };
        let head = {
            let Link { sender, driver, bell, .. } = &mut *self;
            let mut answer = pin!(sender.send_request(request));
            let mut over = false;
            let mut poll = |context: &mut Context<'_>| {
                if !over && let Poll::Ready(ended) = Pin::new(&mut *driver).poll(context) {
                    over = true;
                    if let Err(error) = ended {
                        return Poll::Ready(Err(failed(error)));
                    }
                }
                match answer.as_mut().poll(&mut nobody()) {
                    Poll::Ready(Ok(head)) => Poll::Ready(Ok((head, over))),
                    Poll::Ready(Err(error)) => Poll::Ready(Err(failed(error))),
                    Poll::Pending if over => Poll::Ready(Err(ExchangeError::Closed)),
                    Poll::Pending => Poll::Pending,
                }
            };
            std::future::poll_fn(|context| bell.poll(context, &mut poll)).await
        };
        let (head, over) = head?;
        self.reused = true;
        let link = (!over).then_some(self);
        Ok(head.map(|incoming| UpstreamBody { incoming, link, home }))
    }
}

/// Nobody need be woken: only the driver makes what the other half waits for, and that half is
/// polled after each poll of the driver.
fn nobody() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A keep-alive connection that the engine closed in the meantime: the request may go again.
fn is_stale(error: &hyper::Error) -> bool {
    if error.is_canceled() || error.is_closed() || error.is_incomplete_message() {
        return true;
    }
    let io = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    io.is_some_and(|e| {
        use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
    })
}

impl UpstreamBody {
    /// The exchange is over: keep the connection if hyper says that it can carry another, and if it
    /// is this runtime's own. The prober's carries one request, and that is all.
    fn finish(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        let own = Handle::try_current().is_ok_and(|here| here.id() == link.opened_in);
        if own && link.is_open() {
            self.home.put(link);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let UpstreamBody { incoming, link, .. } = &mut *self;
        let mut over = link.is_none();
        let polled = match link {
            None => Poll::Pending,
            Some(link) => {
                let Link { driver, bell, .. } = &mut **link;
                bell.poll(context, |context| {
                    // Twice: asking for a frame is what makes the driver read one.
                    if let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(&mut nobody()) {
                        return Poll::Ready(frame);
                    }
                    if !over && let Poll::Ready(ended) = Pin::new(&mut *driver).poll(context) {
                        over = true;
                        if let Err(error) = ended {
                            return Poll::Ready(Some(Err(error)));
                        }
                    }
                    Pin::new(&mut *incoming).poll_frame(&mut nobody())
                })
            }
        };
        if over {
            *link = None;
        }
        if polled.is_pending() && over {
            return Pin::new(incoming).poll_frame(context);
        }
        if let Poll::Ready(frame) = &polled
            && (frame.is_none() || self.incoming.is_end_stream())
        {
            self.finish();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
