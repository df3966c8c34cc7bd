//! Response bodies, including the body of a stream whose answer is still pending.
//!
//! With `keepalive_comment`, a streaming client receives its head before the answer begins, then comments
//! while the request is queued, prefilled or retried. A comment commits the proxy to the status only; a
//! later failure becomes an error event.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde::de::IgnoredAny;
use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tidegate_engine::usage_injection::correct_cached_tokens;
use tidegate_engine::{
    EngineError, ErrorForm, Usage, redact_answer, redact_error, stream_of_answer,
};
use tidegate_filters::Accepted;
use tidegate_types::{Moment, Seconds};
use tokio::time::Sleep;

use crate::dispatch::answer::streams_events;
use crate::dispatch::reservation::Reservation;
use crate::dispatch::settle::RequestRecord;
use crate::request::byte_relay::ByteRelay;
use crate::request::event_relay::{COMMENT, EventRelay};
use crate::request::tunnel::Tunnel;
use crate::runtime::clock::Clock;
use crate::telemetry::request_log::RequestOutcome;
use crate::upstream::BrokenOff;

/// The body that the client reads.
pub enum RelayBody {
    /// Complete, with the record of its request, if any.
    Full(Option<Bytes>, Option<Box<RequestRecord>>),
    /// A stream of server-sent events.
    Events(Box<EventRelay>),
    /// Another body that is forwarded as it arrives.
    Bytes(Box<ByteRelay>),
    /// A websocket, which the connection carries after the head; the body itself is empty.
    Websocket(Box<Tunnel>),
    /// A stream whose head is sent and whose answer is pending.
    Pending(Box<PendingAnswer>),
}

impl RelayBody {
    /// A complete body without a request record.
    pub fn full(bytes: Bytes) -> RelayBody {
        RelayBody::Full(Some(bytes), None)
    }

    /// An engine's complete answer, redacted; the reservation is released.
    pub fn complete(
        bytes: Bytes,
        reservation: Reservation,
        mut record: Box<RequestRecord>,
    ) -> RelayBody {
        drop(reservation);
        let endpoint = record.accepted.endpoint;
        if endpoint.generates() {
            record.used(Usage::of(endpoint, &bytes));
        }
        let strip = if record.status() < 400 { redact_answer } else { redact_error };
        let clean = match record.trusts_client() {
            true => bytes,
            false => match strip(&bytes) {
                Cow::Owned(clean) => Bytes::from(clean),
                Cow::Borrowed(_) => bytes,
            },
        };
        let clean = correct_cached_tokens(clean, record.cached());
        let failed = record.status() >= 500;
        record.end(if failed { RequestOutcome::Failed } else { RequestOutcome::Done });
        RelayBody::Full(Some(clean), Some(record))
    }

    /// Called when the client has closed its sending half, which may mean that it left. The next data of
    /// an event stream is then a comment, whose write shows whether the client still reads.
    pub fn probe(&mut self) {
        if let RelayBody::Events(relay) = self {
            relay.probe();
        }
    }
}

impl Body for RelayBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &mut *self {
            RelayBody::Full(bytes, record) => {
                record.take();
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))))
            }
            RelayBody::Events(relay) => {
                relay.poll_chunk(context).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
            }
            RelayBody::Bytes(relay) => relay.poll_chunk(context),
            RelayBody::Websocket(_) => Poll::Ready(None),
            RelayBody::Pending(waiting) => match std::task::ready!(waiting.poll(context)) {
                NextChunk::Comment => Poll::Ready(Some(Ok(Frame::data(COMMENT)))),
                NextChunk::Answer(answer) => {
                    *self = answer;
                    self.poll_frame(context)
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RelayBody::Full(bytes, _) => bytes.as_ref().is_none_or(Bytes::is_empty),
            RelayBody::Websocket(_) => true,
            RelayBody::Events(_) | RelayBody::Bytes(_) | RelayBody::Pending(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RelayBody::Full(bytes, _) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            RelayBody::Bytes(relay) => {
                relay.remaining().map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            RelayBody::Websocket(_) => SizeHint::with_exact(0),
            RelayBody::Events(_) | RelayBody::Pending(_) => SizeHint::default(),
        }
    }
}

/// The remaining stages of a request, up to the first byte of its answer.
pub type AnswerFuture = Pin<Box<dyn Future<Output = Response<RelayBody>> + Send>>;

/// The next data for the client.
pub enum NextChunk {
    Comment,
    /// The answer, which replaces the pending body.
    Answer(RelayBody),
}

/// Body of a stream whose answer is pending.
pub struct PendingAnswer {
    answer: AnswerFuture,
    accepted: Arc<Accepted>,
    interval: Seconds,
    clock: Clock,
    next: Moment,
    timer: Pin<Box<Sleep>>,
}

impl PendingAnswer {
    /// A body whose first comment is due at once.
    pub fn new(
        answer: AnswerFuture,
        accepted: Arc<Accepted>,
        interval: Seconds,
        clock: Clock,
    ) -> PendingAnswer {
        let next = clock.now();
        let timer = Box::pin(tokio::time::sleep_until(clock.coarse_instant(next + interval)));
        PendingAnswer { answer, accepted, interval, clock, next, timer }
    }

    /// Returns the response whose head is sent before the answer.
    pub fn response(self) -> Response<RelayBody> {
        let mut response = Response::new(RelayBody::Pending(Box::new(self)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    /// The next comment, or the answer. Must not be polled after the answer.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<NextChunk> {
        if let Poll::Ready(response) = self.answer.as_mut().poll(context) {
            return Poll::Ready(NextChunk::Answer(as_events(response, &self.accepted)));
        }
        let now = self.clock.now();
        if now >= self.next {
            self.next = now + self.interval;
            self.timer.as_mut().reset(self.clock.coarse_instant(self.next));
            // Registers the timer: the next grid point is at or after `next`.
            if self.timer.as_mut().poll(context).is_ready() {
                context.waker().wake_by_ref();
            }
            return Poll::Ready(NextChunk::Comment);
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
        // A forwarded answer, larger than the proxy buffers.
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
        record.end(RequestOutcome::Failed);
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

/// Returns the error message for an answer with a success status that is not a stream.
fn no_stream(headers: &HeaderMap) -> String {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or("an answer without a content type");
    format!("The engine did not answer with a stream of events but with {kind}.")
}

/// Returns the status of the error event: 502 for a success status without a stream.
fn status(status: StatusCode) -> u16 {
    if status.is_success() { StatusCode::BAD_GATEWAY.as_u16() } else { status.as_u16() }
}
