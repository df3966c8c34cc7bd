//! Relays a stream of server-sent events: forwards each chunk, counts its tokens, and settles the charges
//! at the end. Dropping the relay (the client left) closes the engine's connection and settles likewise.

use bytes::Bytes;
use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tidegate_engine::{
    ApiError, ClientState, Endpoint, ErrorForm, Evidence, FailureKind, HandoffRedactor,
    OtherAttempts, Seen, SseReader, UsageFilter, UsageRequest, attribute, redact_error,
};
use tidegate_types::{Moment, Seconds};
use tokio::time::Sleep;

use crate::backends::fleet::Backend;
use crate::dispatch::answer::StartedStream;
use crate::dispatch::blame;
use crate::dispatch::reservation::Reservation;
use crate::dispatch::settings_in_force::SettingsInForce;
use crate::dispatch::settle::RequestRecord;
use crate::telemetry::request_log::RequestOutcome;
use crate::upstream::EngineBody;

/// A comment of server-sent events, which clients ignore.
pub const COMMENT: Bytes = Bytes::from_static(b": keepalive\n\n");

/// Longest time for which an engine may hold its connection open after the end mark; the connection is
/// then closed. Engines end a stream with the mark, or within a step of it.
const END_MAX: Seconds = Seconds(1.0);

/// Longest time between the last `finish_reason` and the end mark. Engines send both, and the usage,
/// within one or two steps; a stream held open longer is ended by the proxy.
const FINISHED_MAX: Seconds = Seconds(5.0);
/// Longest silence of a stream whose engine is marked down.
const DEAD_AFTER: Seconds = Seconds(30.0);
/// Time without reads by the client after which an engine may close its connection.
const CLIENT_BLOCKS: Seconds = Seconds(5.0);

/// A stream of server-sent events.
pub struct EventRelay {
    first: Option<Bytes>,
    upstream: Option<EngineBody>,
    reader: SseReader,
    redactor: Option<HandoffRedactor>,
    usage: Option<UsageFilter>,
    backend: Arc<Backend>,
    /// Released at the end of the last choice.
    reservation: Option<Reservation>,
    record: Option<Box<RequestRecord>>,
    /// Timer of the next health check or comment.
    check: Pin<Box<Sleep>>,
    last_chunk: Moment,
    /// Start of the wait for the engine's next bytes; `None` while the client does not read.
    waiting_since: Option<Moment>,
    /// Time of the last data for the client before the first token.
    last_sent: Moment,
    /// Whether a complete stream of this API ends with a mark such as `[DONE]`.
    has_end_mark: bool,
    /// Number of choices; without an end mark the stream is complete when all have finished.
    choices: u32,
    /// A token has been forwarded.
    has_tokens: bool,
    /// The end mark has arrived.
    done: bool,
    /// The end mark has arrived or all choices have finished; a usage chunk may follow.
    whole: bool,
    /// Deadline for which the timer is set once the stream is complete.
    end_timed: Option<Moment>,
    /// The stream contains an error event of the engine.
    error: bool,
    /// A comment shall be sent, to detect whether the client has left.
    probe_requested: bool,
}

impl EventRelay {
    /// The relay of a stream whose first events have been read.
    pub fn new(
        begun: StartedStream,
        reservation: Reservation,
        record: Box<RequestRecord>,
    ) -> EventRelay {
        let StartedStream { first, seen, mut reader, rest: upstream } = begun;
        let now = record.proxy.clock.now();
        let trusted = record.trusts_client();
        let requested = record.client().usage_request;
        let usage_request = requested.unwrap_or(UsageRequest::Every);
        let edits = usage_request != UsageRequest::Every || record.cached().is_some();
        let usage = edits.then(|| UsageFilter::new(usage_request, record.cached()));
        if requested.is_some() {
            reader.count_exactly(&seen);
        }
        let has_end_mark = record.accepted.endpoint.generates();
        let proxy = &record.proxy;
        let comments = record.settings().keepalive_comment.filter(|_| seen.tokens == 0);
        let first_look =
            proxy.clock.coarse_instant(now + comments.unwrap_or(check_delay(record.settings())));
        let mut relay = EventRelay {
            first: None,
            upstream: Some(upstream),
            reader,
            redactor: (!trusted).then(HandoffRedactor::new),
            usage,
            backend: Arc::clone(&reservation.backend),
            reservation: Some(reservation),
            check: Box::pin(tokio::time::sleep_until(first_look)),
            choices: record.client().choices,
            record: Some(record),
            last_chunk: now,
            last_sent: now,
            waiting_since: None,
            has_end_mark,
            has_tokens: false,
            done: false,
            whole: false,
            end_timed: None,
            error: false,
            probe_requested: false,
        };
        let is_error = seen.error;
        relay.count(seen, now);
        let first = relay.clean(first);
        relay.first = Some(relay.without_quoted(first, is_error));
        relay
    }

    /// Requests a comment as the next data, if the client is between two events.
    pub(crate) fn probe(&mut self) {
        self.probe_requested = true;
    }

    pub(crate) fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
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

    /// Handles a stream that ended early or failed. After the end mark or an error event of the engine,
    /// the end of the connection is not a further failure.
    fn broken(&mut self, why: &str, sign: FailureKind) -> Option<Bytes> {
        let within_event = !self.reader.is_between_events();
        let last = self.reader.finish();
        self.count(last, self.last_chunk);
        if self.error {
            if let Some(record) = &mut self.record {
                record.explain("the engine ended its stream with an error");
            }
            return self.finish(RequestOutcome::Cut);
        }
        if self.whole {
            return self.finish(RequestOutcome::Done);
        }
        self.cut(why, sign, within_event)
    }

    /// Settles, and returns the bytes that the usage filter still holds.
    fn finish(&mut self, how: RequestOutcome) -> Option<Bytes> {
        self.end(how);
        self.usage.as_mut().and_then(UsageFilter::rest)
    }

    /// Counts and redacts a chunk.
    fn take(&mut self, chunk: Bytes) -> Bytes {
        let seen = self.reader.feed(&chunk);
        let now = match &self.record {
            Some(record) => record.proxy.clock.now(),
            None => self.last_chunk,
        };
        self.last_chunk = now;
        self.waiting_since = None;
        if !self.has_tokens {
            self.last_sent = now;
        }
        if let Some(record) = &self.record {
            record.live.received(now);
        }
        self.count(seen, now);
        let chunk = self.clean(chunk);
        self.without_quoted(chunk, seen.error)
    }

    /// Removes hand-off members that the text of an error quotes.
    fn without_quoted(&self, chunk: Bytes, is_error: bool) -> Bytes {
        match is_error && self.redactor.is_some() {
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
        record.used(seen.usage);
        if seen.tokens > 0 {
            if let Some(reservation) = &mut self.reservation {
                reservation.prefilled();
                reservation.emit(seen.tokens);
            }
            if let Some(prefilling) = record.take_prefilling() {
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
                // The engine has generated its last token, even if its connection stays open.
                self.reservation = None;
            }
        }
    }

    /// Handles a wait for the engine. A silent stream is cut only after the operator's limit
    /// (`silence_seconds`) or if the engine is down: a tool call that is sent in one piece can take
    /// a minute.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(record) = &self.record else { return Poll::Pending };
        let (clock, settings) = (record.proxy.clock, Arc::clone(&record.client().settings));
        let since = *self.waiting_since.get_or_insert_with(|| {
            let now = clock.now();
            record.live.await_engine(now);
            now
        });
        if std::mem::take(&mut self.probe_requested) && self.can_send_comment() {
            return Poll::Ready(Some(COMMENT));
        }
        if let Some(end) = self.ends_by()
            && self.end_timed.replace(end) != Some(end)
        {
            self.check.as_mut().reset(clock.coarse_instant(end));
        }
        while self.check.as_mut().poll(context).is_ready() {
            let now = clock.now();
            let waits = !self.has_tokens && !self.whole;
            let comments = settings.keepalive_comment.filter(|_| waits);
            if comments.is_some_and(|interval| now >= self.last_sent + interval) {
                self.last_sent = now;
                if self.can_send_comment() {
                    return Poll::Ready(Some(COMMENT));
                }
            }
            if !self.done && self.ends_by().is_some_and(|end| now >= end) {
                return Poll::Ready(self.end_held_open());
            }
            if let Some(why) = self.exceeded_limit(settings.silence_max(), since, now) {
                return Poll::Ready(self.broken(why, FailureKind::TimedOut));
            }
            let check_delay = check_delay(&settings);
            let check = if now >= since + check_delay { now } else { since } + check_delay;
            let comment = comments.map(|interval| self.last_sent + interval);
            let next = comment.map_or(check, |comment| comment.min(check));
            self.check.as_mut().reset(clock.coarse_instant(next));
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
    fn end_held_open(&mut self) -> Option<Bytes> {
        let endpoint = self.record.as_ref().map(|record| record.accepted.endpoint);
        let between = self.reader.is_between_events();
        let mark = endpoint.filter(|_| between).map_or("", Endpoint::end_mark);
        let rest = self.finish(RequestOutcome::Done).unwrap_or_default();
        let last = [&rest, mark.as_bytes()].concat();
        (!last.is_empty()).then(|| Bytes::from(last))
    }

    /// Returns why the wait for an engine that is silent since `since` ends, if it does.
    fn exceeded_limit(
        &self,
        silence_max: Seconds,
        since: Moment,
        now: Moment,
    ) -> Option<&'static str> {
        if self.done && now >= self.last_chunk + END_MAX {
            return Some("the engine did not end its stream");
        }
        let limit = match self.has_tokens {
            true => silence_max,
            // A running prefill does not count as silence.
            false => silence_max.max(self.backend.pool.first_byte_timeout().into()),
        };
        let limited = silence_max > Seconds::ZERO && now >= since + limit;
        let dead = !self.backend.health.is_up() && now >= since + DEAD_AFTER;
        match (dead, limited) {
            (true, _) => Some("the engine is down"),
            (false, true) => Some("the engine went silent"),
            (false, false) => None,
        }
    }

    /// Returns whether a comment can be inserted: the client is between two events of an event stream.
    fn can_send_comment(&self) -> bool {
        !self.has_lines()
            && self.reader.is_between_events()
            && self.usage.as_ref().is_none_or(UsageFilter::is_empty)
    }

    fn has_lines(&self) -> bool {
        self.record.as_ref().is_none_or(|record| record.accepted.endpoint.streams_lines())
    }

    /// Returns whether the client was reading when the engine was read from last.
    fn client(&self, now: Moment) -> ClientState {
        match self.waiting_since {
            None if now - self.last_chunk > CLIENT_BLOCKS => ClientState::NotReading,
            _ => ClientState::Reading,
        }
    }

    /// Cuts the stream after an engine failure. Returns the error event in the format of the client's API.
    fn cut(&mut self, why: &str, sign: FailureKind, within_event: bool) -> Option<Bytes> {
        if let Some(record) = &self.record {
            let client = self.client(record.proxy.clock.now());
            if attribute(sign, OtherAttempts::Untried, client) == Evidence::Engine {
                blame::engine(&record.proxy, &self.backend, &why);
            }
        }
        if let Some(record) = &mut self.record {
            record.explain(why);
        }
        // A blank line first: the last chunk may have ended within an event.
        let error = ApiError::upstream_failed(format!("backend {}: {why}", self.backend.name));
        let form = self.record.as_ref().map(|record| ErrorForm::of(record.accepted.endpoint));
        let form = form.unwrap_or(ErrorForm::OpenAi);
        let event = match form {
            // NDJSON: a newline ends a partial line, and empty lines are skipped.
            ErrorForm::Ollama if !within_event => form.sse(&error).to_vec(),
            ErrorForm::Ollama => [b"\n", form.sse(&error).as_ref()].concat(),
            _ => [b"\n\n", form.sse(&error).as_ref()].concat(),
        };
        self.end(RequestOutcome::Cut);
        Some(Bytes::from(event))
    }

    /// Settles now instead of when the client's connection drops the body.
    fn end(&mut self, how: RequestOutcome) -> Option<Bytes> {
        self.upstream = None;
        self.reservation = None;
        if let Some(mut record) = self.record.take() {
            record.end(how);
        }
        None
    }
}

/// Delay before the engine's health is checked during a wait.
fn check_delay(settings: &SettingsInForce) -> Seconds {
    let limit = settings.silence_max();
    if limit > Seconds::ZERO { limit.min(DEAD_AFTER) } else { DEAD_AFTER }
}

impl Drop for EventRelay {
    fn drop(&mut self) {
        // A client may close after the end mark, before the last, empty chunk.
        if self.whole {
            self.end(RequestOutcome::Done);
        }
    }
}
