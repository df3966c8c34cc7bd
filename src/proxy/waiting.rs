//! A stream whose answer is long in coming: the client has its head, and gets comments, while the
//! request waits for a place, is prefilled, or is tried elsewhere. A comment commits to nothing but
//! the status, so all that may happen before the first token may happen behind it; a failure then
//! becomes an error event.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tidegate_engine::{EngineError, ErrorForm};
use tidegate_types::{Moment, Seconds};
use tokio::time::Sleep;

use crate::answer::streams_events;
use crate::clock::Clock;
use crate::relay::RelayBody;
use crate::settle::Ended;

/// A comment of server-sent events: every reader passes over it.
pub const COMMENT: Bytes = Bytes::from_static(b": keepalive\n\n");

/// What is said of an answer that is no stream of events.
const NO_STREAM: &[u8] = b"The engine did not answer with a stream.";

/// A request on its way to its answer.
pub type Serving = Pin<Box<dyn Future<Output = Response<RelayBody>> + Send>>;

/// What the client gets next.
pub enum Turn {
    /// [`COMMENT`]
    Comment,
    /// The answer, which takes over.
    Answer(RelayBody),
}

/// A body that waits for its answer.
pub struct Waiting {
    serving: Serving,
    form: ErrorForm,
    interval: Seconds,
    clock: Clock,
    next: Moment,
    timer: Pin<Box<Sleep>>,
}

impl Waiting {
    /// A body whose first comment is due at once.
    pub fn new(serving: Serving, form: ErrorForm, interval: Seconds, clock: Clock) -> Waiting {
        let next = clock.now();
        let timer = Box::pin(tokio::time::sleep_until(clock.coarse_instant(next + interval)));
        Waiting { serving, form, interval, clock, next, timer }
    }

    /// The head that the client gets in advance.
    pub fn response(self) -> Response<RelayBody> {
        let mut response = Response::new(RelayBody::Waiting(Box::new(self)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    /// The next comment, or the answer. Must not be polled after the answer.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Turn> {
        if let Poll::Ready(response) = self.serving.as_mut().poll(context) {
            return Poll::Ready(Turn::Answer(as_events(response, self.form)));
        }
        let now = self.clock.now();
        if now >= self.next {
            self.next = now + self.interval;
            self.timer.as_mut().reset(self.clock.coarse_instant(self.next));
            // Registers the timer: the clock's grid is not before `next`.
            if self.timer.as_mut().poll(context).is_ready() {
                context.waker().wake_by_ref();
            }
            return Poll::Ready(Turn::Comment);
        }
        match self.timer.as_mut().poll(context) {
            Poll::Ready(()) => {
                self.next = now;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// The answer to a client that reads events already.
fn as_events(response: Response<RelayBody>, form: ErrorForm) -> RelayBody {
    let (head, body) = response.into_parts();
    if head.status.is_success() && streams_events(&head.headers) {
        return body;
    }
    match body {
        RelayBody::Full(bytes, mut record) => {
            if let Some(record) = &mut record {
                record.ended = Ended::Failed;
            }
            let bytes = bytes.unwrap_or_default();
            let bytes = if head.status.is_success() { NO_STREAM } else { &bytes };
            let event = EngineError::of_body(bytes).event(form, status(head.status));
            RelayBody::Full(Some(event), record)
        }
        other => {
            drop(other);
            RelayBody::full(EngineError::of_body(NO_STREAM).event(form, status(head.status)))
        }
    }
}

/// An answer that is no stream is a failure, whatever its status.
fn status(status: StatusCode) -> u16 {
    if status.is_success() { StatusCode::BAD_GATEWAY.as_u16() } else { status.as_u16() }
}
