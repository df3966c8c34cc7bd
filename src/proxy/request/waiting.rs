//! A stream whose answer is long in coming: the client has its head, and gets comments, while the
//! request waits for a place, is prefilled, or is tried elsewhere. A comment commits to nothing but
//! the status, so all that may happen before the first token may happen behind it; a failure then
//! becomes an error event.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use serde::de::IgnoredAny;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tidegate_engine::{EngineError, ErrorForm, stream_of_answer};
use tidegate_filters::Accepted;
use tidegate_types::{Moment, Seconds};
use tokio::time::Sleep;

use crate::dispatch::answer::streams_events;
use crate::request::relay::RelayBody;
use crate::runtime::clock::Clock;
use crate::telemetry::request_log::RequestOutcome;

/// A comment of server-sent events: every reader passes over it.
pub const COMMENT: Bytes = Bytes::from_static(b": keepalive\n\n");

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
    accepted: Arc<Accepted>,
    interval: Seconds,
    clock: Clock,
    next: Moment,
    timer: Pin<Box<Sleep>>,
}

impl Waiting {
    /// A body whose first comment is due at once.
    pub fn new(
        serving: Serving,
        accepted: Arc<Accepted>,
        interval: Seconds,
        clock: Clock,
    ) -> Waiting {
        let next = clock.now();
        let timer = Box::pin(tokio::time::sleep_until(clock.coarse_instant(next + interval)));
        Waiting { serving, accepted, interval, clock, next, timer }
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
            return Poll::Ready(Turn::Answer(as_events(response, &self.accepted)));
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

/// Converts an answer for a client whose event stream has begun: a whole completion into its stream, any
/// other non-stream answer into an error event.
fn as_events(response: Response<RelayBody>, accepted: &Accepted) -> RelayBody {
    let (head, body) = response.into_parts();
    let served = head.status.is_success();
    if served && streams_events(&head.headers) {
        return body;
    }
    let (bytes, mut record) = match body {
        RelayBody::Full(bytes, record) => (bytes, record),
        // Larger than the proxy buffers.
        other => {
            drop(other);
            (None, None)
        }
    };
    let bytes = bytes.unwrap_or_default();
    let whole = accepted.scan.as_ref().filter(|_| served);
    if let Some(stream) = whole.and_then(|scan| stream_of_answer(&bytes, scan)) {
        return RelayBody::Full(Some(stream), record);
    }
    if let Some(record) = &mut record {
        record.outcome = RequestOutcome::Failed;
    }
    let form = ErrorForm::of(accepted.endpoint);
    let event = match served && !is_error(&bytes) {
        true => EngineError::of_body(no_stream(&head.headers).as_bytes()),
        false => EngineError::of_body(&bytes),
    };
    RelayBody::Full(Some(event.event(form, status(head.status))), record)
}

/// Returns whether a JSON body with a success status has an `error` member.
fn is_error(body: &[u8]) -> bool {
    let read = serde_json::from_slice::<HashMap<&str, IgnoredAny>>(body);
    read.is_ok_and(|members| members.contains_key("error"))
}

fn no_stream(headers: &HeaderMap) -> String {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or("an answer without a content type");
    format!("The engine did not answer with a stream of events but with {kind}.")
}

/// An answer that is no stream is a failure, whatever its status.
fn status(status: StatusCode) -> u16 {
    if status.is_success() { StatusCode::BAD_GATEWAY.as_u16() } else { status.as_u16() }
}
