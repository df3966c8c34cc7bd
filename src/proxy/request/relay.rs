//! Relays an answer to the client: forwards each chunk, counts its tokens, and settles the charges at
//! the end. Dropping the body (the client left) closes the engine's connection and settles likewise.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tidegate_engine::usage_injection::correct_cached_tokens;
use tidegate_engine::{
    ApiError, ClientState, Endpoint, ErrorForm, Evidence, FailureKind, HandoffRedactor,
    OtherAttempts, Seen, SseReader, Usage, UsageFilter, UsageRequest, attribute, redact_answer,
    redact_error,
};
use tidegate_types::{Moment, Seconds};
use tokio::time::Sleep;

use crate::backends::fleet::Backend;
use crate::dispatch::answer::Begun;
use crate::dispatch::blame;
use crate::dispatch::context::Proxy;
use crate::dispatch::reservation::Reservation;
use crate::dispatch::settle::RequestRecord;
use crate::request::byte_relay::ByteRelay;
use crate::request::tunnel::Tunnel;
use crate::request::waiting::{COMMENT, Turn, Waiting};
use crate::telemetry::request_log::RequestOutcome;
use crate::upstream::BrokenOff;
use crate::upstream::EngineBody;

/// Longest time for which an engine may hold its connection open after the end mark; the connection is
/// then closed. Engines end a stream with the mark, or within a step of it.
const END_MAX: Seconds = Seconds(1.0);

/// Longest time between the last `finish_reason` and the end mark. Engines send both, and the usage,
/// within one or two steps; a stream held open longer is ended by the proxy.
const FINISHED_MAX: Seconds = Seconds(5.0);
/// Longest silence of a stream whose engine is down.
const DEAD_AFTER: Seconds = Seconds(30.0);
/// Time without reads by the client after which an engine may close its connection.
const CLIENT_BLOCKS: Seconds = Seconds(5.0);

/// The body that the client reads.
pub enum RelayBody {
    /// All of it is here.
    Full(Option<Bytes>, Option<Box<RequestRecord>>),
    /// A stream of server-sent events.
    Events(Box<EventRelay>),
    /// Anything else that goes on as it comes.
    Bytes(Box<ByteRelay>),
    /// A websocket: the connection carries it after the head, and this body has no data.
    Websocket(Box<Tunnel>),
    /// A stream whose answer is still to come; its head is on its way.
    Waiting(Box<Waiting>),
}

/// A stream of server-sent events.
pub struct EventRelay {
    first: Option<Bytes>,
    upstream: Option<EngineBody>,
    reader: SseReader,
    redactor: Option<HandoffRedactor>,
    usage: Option<UsageFilter>,
    backend: Arc<Backend>,
    /// Given back at the end mark.
    reservation: Option<Reservation>,
    record: Option<Box<RequestRecord>>,
    /// When to look whether the engine is still there, or to send a comment.
    look: Pin<Box<Sleep>>,
    last_chunk: Moment,
    /// Since when the engine's next bytes are waited for; `None` while the client takes nothing.
    waits_since: Option<Moment>,
    /// When the client got something, before the first token.
    last_sent: Moment,
    /// Does a whole stream of this kind end with `[DONE]`, or with what stands for it?
    has_end_mark: bool,
    /// Choices of the answer: each has to finish, where no mark ends them all.
    choices: u32,
    has_tokens: bool,
    /// The end mark came; or all choices have finished, and only a usage may follow.
    done: bool,
    whole: bool,
    /// The end that the timer is set to, once the stream is whole.
    end_timed: Option<Moment>,
    /// The engine said itself that it failed.
    error: bool,
    /// A comment is wanted, to see whether the client is still there.
    probed: bool,
}

impl RelayBody {
    /// A body that is all here and belongs to no request that is accounted for.
    pub fn full(bytes: Bytes) -> RelayBody {
        RelayBody::Full(Some(bytes), None)
    }

    /// An engine's answer that is all here: the backend has done its part.
    pub fn complete(
        bytes: Bytes,
        reservation: Reservation,
        mut record: Box<RequestRecord>,
    ) -> RelayBody {
        drop(reservation);
        let accepted = &record.accepted;
        if accepted.endpoint.generates() {
            record.usage = Usage::of(accepted.endpoint, &bytes);
        }
        let strip = if record.status < 400 { redact_answer } else { redact_error };
        let clean = match record.trusts_client() {
            true => bytes,
            false => match strip(&bytes) {
                Cow::Owned(clean) => Bytes::from(clean),
                Cow::Borrowed(_) => bytes,
            },
        };
        let clean = correct_cached_tokens(clean, record.notes.cached);
        record.outcome =
            if record.status < 500 { RequestOutcome::Done } else { RequestOutcome::Failed };
        RelayBody::Full(Some(clean), Some(record))
    }

    /// The client has closed its sending half: it may have left. Where it can be done unseen, the
    /// next data is a comment, and its fate tells.
    pub fn probe(&mut self) {
        if let RelayBody::Events(relay) = self {
            relay.probed = true;
        }
    }
}

impl EventRelay {
    /// A stream whose first chunk is here.
    pub fn new(begun: Begun, reservation: Reservation, record: Box<RequestRecord>) -> EventRelay {
        let Begun { first, seen, mut reader, rest: upstream } = begun;
        let now = record.proxy.clock.now();
        let asked = record.trusts_client();
        let usage_request = record.usage_request.unwrap_or(UsageRequest::Every);
        let edits = usage_request != UsageRequest::Every || record.notes.cached.is_some();
        let usage = edits.then(|| UsageFilter::new(usage_request, record.notes.cached));
        if record.usage_request.is_some() {
            reader.count_exactly(&seen);
        }
        let has_end_mark = record.accepted.endpoint.generates();
        let proxy = &record.proxy;
        let comments = proxy.keepalive_comment.filter(|_| seen.tokens == 0);
        let first_look = proxy.clock.coarse_instant(now + comments.unwrap_or(patience(proxy)));
        let mut relay = EventRelay {
            first: None,
            upstream: Some(upstream),
            reader,
            redactor: (!asked).then(HandoffRedactor::new),
            usage,
            backend: Arc::clone(&reservation.backend),
            reservation: Some(reservation),
            look: Box::pin(tokio::time::sleep_until(first_look)),
            choices: record.choices,
            record: Some(record),
            last_chunk: now,
            last_sent: now,
            waits_since: None,
            has_end_mark,
            has_tokens: false,
            done: false,
            whole: false,
            end_timed: None,
            error: false,
            probed: false,
        };
        relay.count(seen, now);
        relay.first = Some(relay.clean(first));
        relay
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let Some(upstream) = &mut self.upstream else { return Poll::Ready(None) };
        match upstream.poll_data(context) {
            Poll::Ready(Some(Ok(chunk))) => Poll::Ready(Some(self.take(chunk))),
            Poll::Ready(Some(Err(error))) => {
                Poll::Ready(self.broken(&error.to_string(), FailureKind::Broken))
            }
            Poll::Ready(None) => Poll::Ready(self.ended()),
            Poll::Pending => self.poll_silence(context),
        }
    }

    /// The engine closed the stream: classifies it as complete or truncated.
    fn ended(&mut self) -> Option<Bytes> {
        if self.has_end_mark {
            return self.broken("the stream ended without an end mark", FailureKind::Broken);
        }
        let last = self.reader.finish();
        self.count(last, self.last_chunk);
        self.finish(RequestOutcome::Done)
    }

    /// The stream came to an end, of whatever kind: after the end mark, or after the engine's own
    /// error, an end is an end.
    fn broken(&mut self, why: &str, sign: FailureKind) -> Option<Bytes> {
        let within_event = !self.reader.is_between_events();
        let last = self.reader.finish();
        self.count(last, self.last_chunk);
        if self.error {
            if let Some(record) = &mut self.record {
                record.problem = Some("the engine ended its stream with an error".to_owned());
            }
            return self.finish(RequestOutcome::Cut);
        }
        if self.whole {
            return self.finish(RequestOutcome::Done);
        }
        self.cut(why, sign, within_event)
    }

    fn finish(&mut self, how: RequestOutcome) -> Option<Bytes> {
        self.end(how);
        self.usage.as_mut().and_then(UsageFilter::rest)
    }

    fn take(&mut self, chunk: Bytes) -> Bytes {
        let seen = self.reader.feed(&chunk);
        let now = match &self.record {
            Some(record) => record.proxy.clock.now(),
            None => self.last_chunk,
        };
        self.last_chunk = now;
        self.waits_since = None;
        if !self.has_tokens {
            self.last_sent = now;
        }
        if let Some(record) = &self.record {
            record.live.heard(now);
        }
        self.count(seen, now);
        let chunk = self.clean(chunk);
        match seen.error && self.redactor.is_some() {
            true => match redact_error(&chunk) {
                Cow::Owned(clean) => Bytes::from(clean),
                Cow::Borrowed(_) => chunk,
            },
            false => chunk,
        }
    }

    fn clean(&mut self, chunk: Bytes) -> Bytes {
        let chunk = match &mut self.redactor {
            Some(filter) => filter.pass(chunk),
            None => chunk,
        };
        match &mut self.usage {
            Some(filter) => filter.pass(chunk),
            None => chunk,
        }
    }

    fn count(&mut self, seen: Seen, now: Moment) {
        self.error |= seen.error;
        let Some(record) = &mut self.record else { return };
        record.usage = seen.usage.or(record.usage);
        if seen.tokens > 0 {
            if let Some(reservation) = &mut self.reservation {
                reservation.prefilled();
                reservation.emit(seen.tokens);
            }
            if let Some(prefilling) = record.notes.prefilling.take() {
                let RequestRecord { proxy, accepted, live, .. } = &**record;
                prefilling.ended(proxy, accepted, live.prompt, now, None);
            }
            self.has_tokens = true;
            record.live.emitted_at(seen.tokens, now);
        }
        if seen.done || seen.finished {
            self.done |= seen.done;
            self.whole = self.done || self.reader.finished_choices() >= self.choices;
            if self.whole {
                // The engine's work is over, whenever its connection ends.
                self.reservation = None;
            }
        }
    }

    /// The engine is waited for. A stream is cut for silence only where an operator has set a limit,
    /// or where the engine is known to be dead: a tool call written in one piece takes a minute.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(record) = &self.record else { return Poll::Pending };
        let proxy = Arc::clone(&record.proxy);
        let clock = proxy.clock;
        let since = *self.waits_since.get_or_insert_with(|| {
            let now = clock.now();
            record.live.waits(now);
            now
        });
        if std::mem::take(&mut self.probed) && self.may_comment() {
            return Poll::Ready(Some(COMMENT));
        }
        if let Some(end) = self.ends_by()
            && self.end_timed.replace(end) != Some(end)
        {
            self.look.as_mut().reset(clock.coarse_instant(end));
        }
        while self.look.as_mut().poll(context).is_ready() {
            let now = clock.now();
            let waits = !self.has_tokens && !self.whole;
            let comments = proxy.keepalive_comment.filter(|_| waits);
            if comments.is_some_and(|interval| now >= self.last_sent + interval) {
                self.last_sent = now;
                if self.may_comment() {
                    return Poll::Ready(Some(COMMENT));
                }
            }
            if !self.done && self.ends_by().is_some_and(|end| now >= end) {
                return Poll::Ready(self.held_open());
            }
            if let Some(why) = self.given_up(&proxy, since, now) {
                return Poll::Ready(self.broken(why, FailureKind::TimedOut));
            }
            let patience = patience(&proxy);
            let look = if now >= since + patience { now } else { since } + patience;
            let comment = comments.map(|interval| self.last_sent + interval);
            let next = comment.map_or(look, |comment| comment.min(look));
            self.look.as_mut().reset(clock.coarse_instant(next));
        }
        Poll::Pending
    }

    /// Returns the deadline for the end of a stream whose choices have all finished.
    fn ends_by(&self) -> Option<Moment> {
        match (self.done, self.whole) {
            (true, _) => Some(self.last_chunk + END_MAX),
            (false, true) => Some(self.last_chunk + FINISHED_MAX),
            (false, false) => None,
        }
    }

    /// Ends a stream that the engine holds open after its last choice, with the end mark of the API.
    fn held_open(&mut self) -> Option<Bytes> {
        let endpoint = self.record.as_ref().map(|record| record.accepted.endpoint);
        let between = self.reader.is_between_events();
        let mark = endpoint.filter(|_| between).map_or("", Endpoint::end_mark);
        let rest = self.finish(RequestOutcome::Done).unwrap_or_default();
        let last = [&rest, mark.as_bytes()].concat();
        (!last.is_empty()).then(|| Bytes::from(last))
    }

    /// Why an engine that has said nothing since then is waited for no longer.
    fn given_up(&self, proxy: &Proxy, since: Moment, now: Moment) -> Option<&'static str> {
        if self.done && now >= self.last_chunk + END_MAX {
            return Some("the engine did not end its stream");
        }
        let limit = match self.has_tokens {
            true => proxy.silence_max,
            // A running prefill does not count as silence.
            false => proxy.silence_max.max(self.backend.pool.first_byte_timeout().into()),
        };
        let limited = proxy.silence_max > Seconds::ZERO && now >= since + limit;
        let dead = !self.backend.health.is_up() && now >= since + DEAD_AFTER;
        match (dead, limited) {
            (true, _) => Some("the engine is down"),
            (false, true) => Some("the engine went silent"),
            (false, false) => None,
        }
    }

    /// Is the client between two events?
    fn may_comment(&self) -> bool {
        !self.has_lines()
            && self.reader.is_between_events()
            && self.usage.as_ref().is_none_or(UsageFilter::is_empty)
    }

    fn has_lines(&self) -> bool {
        self.record.as_ref().is_none_or(|record| record.accepted.endpoint.streams_lines())
    }

    /// For how long the client had taken nothing when the engine was read from last.
    fn client(&self, now: Moment) -> ClientState {
        match self.waits_since {
            None if now - self.last_chunk > CLIENT_BLOCKS => ClientState::NotReading,
            _ => ClientState::Reading,
        }
    }

    /// The engine failed in mid-stream: the client gets an error event in the form of its API.
    fn cut(&mut self, why: &str, sign: FailureKind, within_event: bool) -> Option<Bytes> {
        if let Some(record) = &self.record {
            let client = self.client(record.proxy.clock.now());
            if attribute(sign, OtherAttempts::Untried, client) == Evidence::Engine {
                blame::engine(&record.proxy, &self.backend, &why);
            }
        }
        if let Some(record) = &mut self.record {
            record.problem = Some(why.to_owned());
        }
        // Nothing may be appended to a chunk that broke off inside an event: a blank line first.
        let error = ApiError::upstream_failed(format!("backend {}: {why}", self.backend.name));
        let form = self.record.as_ref().map(|record| ErrorForm::of(record.accepted.endpoint));
        let form = form.unwrap_or(ErrorForm::OpenAi);
        let event = match form {
            // One data line a piece; empty pieces are skipped.
            ErrorForm::Ollama if !within_event => form.sse(&error).to_vec(),
            ErrorForm::Ollama => [b"\n", form.sse(&error).as_ref()].concat(),
            _ => [b"\n\n", form.sse(&error).as_ref()].concat(),
        };
        self.end(RequestOutcome::Cut);
        Some(Bytes::from(event))
    }

    /// Settle now rather than when the client's connection gets round to dropping the body.
    fn end(&mut self, how: RequestOutcome) -> Option<Bytes> {
        self.upstream = None;
        self.reservation = None;
        if let Some(mut record) = self.record.take() {
            record.outcome = how;
        }
        None
    }
}

/// How long a wait for the engine goes on before its health is looked at.
fn patience(proxy: &Proxy) -> Seconds {
    let limit = proxy.silence_max;
    if limit > Seconds::ZERO { limit.min(DEAD_AFTER) } else { DEAD_AFTER }
}

impl Drop for EventRelay {
    fn drop(&mut self) {
        // A client may close as soon as it has read the end, before the last, empty chunk.
        if self.whole {
            self.end(RequestOutcome::Done);
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
            RelayBody::Waiting(waiting) => match std::task::ready!(waiting.poll(context)) {
                Turn::Comment => Poll::Ready(Some(Ok(Frame::data(COMMENT)))),
                Turn::Answer(answer) => {
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
            RelayBody::Events(_) | RelayBody::Bytes(_) | RelayBody::Waiting(_) => false,
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
            RelayBody::Events(_) | RelayBody::Waiting(_) => SizeHint::default(),
        }
    }
}
