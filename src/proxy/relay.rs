//! The answer on its way to the client: each chunk goes on as it came, is counted, and settles the
//! accounts when it was the last. Dropping the body (the client left) closes the engine's
//! connection and settles the same way.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tidegate_engine::exact::with_cached;
use tidegate_engine::{
    ApiError, ClientState, ErrorForm, Evidence, HandoffFilter, Others, Seen, Sign, SseReader,
    Usage, UsageFilter, Wish, judge, strip_handoff,
};
use tidegate_terms::{Moment, Seconds};
use tokio::time::Sleep;

use crate::answer::Begun;
use crate::blame;
use crate::seat::Seat;
use crate::service::Proxy;
use crate::settle::{Ended, Record};
use crate::upstream::{BrokenOff, UpstreamBody};

/// A stream of an engine that is down is given so long to speak again.
const DEAD_AFTER: Seconds = Seconds(30.0);
/// An engine may give up a connection whose client took nothing for so long.
const CLIENT_BLOCKS: Seconds = Seconds(5.0);

/// What the client reads.
pub enum RelayBody {
    /// All of it is here.
    Full(Option<Bytes>, Option<Box<Record>>),
    /// A stream of server-sent events.
    Events(Box<EventRelay>),
    /// Anything else, too large to wait for.
    Bytes(Box<ByteRelay>),
}

/// An answer that is passed on without being read.
pub struct ByteRelay {
    /// What was read before it turned out to be large.
    pub first: Option<Bytes>,
    /// The rest.
    pub rest: UpstreamBody,
    /// Its place on the backend.
    pub seat: Option<Seat>,
    /// Its end.
    pub record: Option<Box<Record>>,
}

/// A stream of server-sent events.
pub struct EventRelay {
    first: Option<Bytes>,
    upstream: Option<UpstreamBody>,
    reader: SseReader,
    leak: Option<HandoffFilter>,
    usage: Option<UsageFilter>,
    seat: Option<Seat>,
    record: Option<Box<Record>>,
    /// When to look whether the engine is still there.
    look: Pin<Box<Sleep>>,
    last_chunk: Moment,
    /// Since when the engine's next bytes are waited for; `None` while the client takes nothing.
    waits_since: Option<Moment>,
    /// Does a whole stream of this kind end with `[DONE]`, or with what stands for it?
    has_end_mark: bool,
    done: bool,
}

impl RelayBody {
    /// A body that is all here and belongs to no request that is accounted for.
    pub fn full(bytes: Bytes) -> RelayBody {
        RelayBody::Full(Some(bytes), None)
    }

    /// An engine's answer that is all here: the backend has done its part.
    pub fn complete(bytes: Bytes, seat: Seat, mut record: Box<Record>) -> RelayBody {
        drop(seat);
        let accepted = &record.accepted;
        if accepted.endpoint.generates() {
            record.usage = Usage::of(accepted.endpoint, &bytes);
        }
        let asked = accepted.scan.as_ref().is_some_and(|scan| scan.client_handoff);
        let clean = match strip_handoff(&bytes) {
            Cow::Owned(clean) if !asked => Bytes::from(clean),
            _ => bytes,
        };
        let clean = with_cached(clean, record.cached);
        record.ended = if record.status < 500 { Ended::Done } else { Ended::Failed };
        RelayBody::Full(Some(clean), Some(record))
    }
}

impl EventRelay {
    /// A stream whose first chunk is here.
    pub fn new(begun: Begun, seat: Seat, record: Box<Record>) -> EventRelay {
        let Begun { first, seen, mut reader, rest: upstream } = begun;
        let now = record.proxy.clock.now();
        let asked = record.accepted.scan.as_ref().is_some_and(|scan| scan.client_handoff);
        let wish = record.wish.unwrap_or(Wish::Every);
        let edits = wish != Wish::Every || record.cached.is_some();
        let usage = edits.then(|| UsageFilter::new(wish, record.cached));
        if record.wish.is_some() {
            reader.count_exactly(&seen);
        }
        let has_end_mark = record.accepted.endpoint.generates();
        let mut relay = EventRelay {
            first: None,
            upstream: Some(upstream),
            reader,
            leak: (!asked).then(HandoffFilter::new),
            usage,
            seat: Some(seat),
            look: Box::pin(tokio::time::sleep(patience(&record.proxy).to_duration())),
            last_chunk: now,
            waits_since: None,
            record: Some(record),
            has_end_mark,
            done: false,
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
                Poll::Ready(self.cut(&error.to_string(), Sign::Broken))
            }
            Poll::Ready(None) => Poll::Ready(self.ended()),
            Poll::Pending => self.poll_silence(context),
        }
    }

    /// The engine closed the stream: whole, or too early?
    fn ended(&mut self) -> Option<Bytes> {
        let last = self.reader.finish();
        self.count(last, self.last_chunk);
        match self.done || !self.has_end_mark {
            true => {
                self.end(Ended::Done);
                self.usage.as_mut().and_then(UsageFilter::rest)
            }
            false => self.cut("the stream ended without [DONE]", Sign::Broken),
        }
    }

    fn take(&mut self, chunk: Bytes) -> Bytes {
        let seen = self.reader.feed(&chunk);
        let now = match &self.record {
            Some(record) => record.proxy.clock.now(),
            None => self.last_chunk,
        };
        self.last_chunk = now;
        self.waits_since = None;
        if let Some(record) = &self.record {
            record.live.heard(now);
        }
        self.count(seen, now);
        self.clean(chunk)
    }

    fn clean(&mut self, chunk: Bytes) -> Bytes {
        let chunk = match &mut self.leak {
            Some(filter) => filter.pass(chunk),
            None => chunk,
        };
        match &mut self.usage {
            Some(filter) => filter.pass(chunk),
            None => chunk,
        }
    }

    fn count(&mut self, seen: Seen, now: Moment) {
        self.done |= seen.done;
        let Some(record) = &mut self.record else { return };
        record.usage = seen.usage.or(record.usage);
        if seen.tokens == 0 {
            return;
        }
        if let Some(seat) = &mut self.seat {
            seat.prefilled();
            seat.emit(seen.tokens);
        }
        record.live.emitted_at(seen.tokens, now);
    }

    /// The engine is waited for. A stream is cut for silence only where an operator has set a limit,
    /// or where the engine is known to be dead: a tool call written in one piece takes a minute.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(record) = &self.record else { return Poll::Pending };
        let clock = record.proxy.clock;
        let since = *self.waits_since.get_or_insert_with(|| {
            let now = clock.now();
            record.live.waits(now);
            now
        });
        let (limit, patience) = (record.proxy.silence_max, patience(&record.proxy));
        while self.look.as_mut().poll(context).is_ready() {
            let now = clock.now();
            let limited = limit > Seconds::ZERO && now >= since + limit;
            let health = self.seat.as_ref().map(|seat| &seat.backend.health);
            let dead = health.is_some_and(|health| !health.is_up()) && now >= since + DEAD_AFTER;
            if limited || dead {
                let why = if dead { "the engine is down" } else { "the engine went silent" };
                return Poll::Ready(self.cut(why, Sign::TimedOut));
            }
            let next = if now >= since + patience { now } else { since };
            self.look.as_mut().reset(clock.coarse_instant(next + patience));
        }
        Poll::Pending
    }

    /// For how long the client had taken nothing when the engine was read from last.
    fn client(&self, now: Moment) -> ClientState {
        match self.waits_since {
            None if now - self.last_chunk > CLIENT_BLOCKS => ClientState::Blocks,
            _ => ClientState::Reads,
        }
    }

    /// The engine failed in mid-stream: the client is told in its own form.
    fn cut(&mut self, why: &str, sign: Sign) -> Option<Bytes> {
        let backend = self.seat.as_ref().map(|seat| seat.backend.clone());
        if let (Some(backend), Some(record)) = (&backend, &self.record) {
            let client = self.client(record.proxy.clock.now());
            if judge(sign, Others::Untried, client) == Evidence::Engine {
                blame::engine(&record.proxy, backend, &why);
            }
        }
        if let Some(record) = &mut self.record {
            record.problem = Some(why.to_owned());
        }
        // Nothing may be appended to a chunk that broke off inside an event: a blank line first.
        let name = backend.map_or_else(|| "?".into(), |backend| backend.name.clone());
        let error = ApiError::upstream_failed(format!("backend {name}: {why}"));
        let form = self.record.as_ref().map(|record| ErrorForm::of(record.accepted.endpoint));
        let form = form.unwrap_or(ErrorForm::OpenAi);
        let event = match form {
            // A line a piece: an empty one is none.
            ErrorForm::Ollama if self.reader.is_between_events() => form.sse(&error).to_vec(),
            ErrorForm::Ollama => [b"\n", form.sse(&error).as_ref()].concat(),
            _ => [b"\n\n", form.sse(&error).as_ref()].concat(),
        };
        self.end(Ended::Cut);
        Some(Bytes::from(event))
    }

    /// Settle now rather than when the client's connection gets round to dropping the body.
    fn end(&mut self, how: Ended) -> Option<Bytes> {
        self.upstream = None;
        self.seat = None;
        if let Some(mut record) = self.record.take() {
            record.ended = how;
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
        // A client may close as soon as it has read [DONE], before the last, empty chunk.
        if self.done {
            self.end(Ended::Done);
        }
    }
}

impl ByteRelay {
    fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let polled = self.rest.poll_data(context);
        let ended = match &polled {
            Poll::Ready(None) => Some(Ended::Done),
            Poll::Ready(Some(Err(_))) => Some(Ended::Cut),
            _ => None,
        };
        if let Some(ended) = ended {
            self.seat = None;
            if let Some(mut record) = self.record.take() {
                record.ended = ended;
            }
        }
        polled.map(|data| data.map(|data| data.map(Frame::data)))
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
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RelayBody::Full(bytes, _) => bytes.as_ref().is_none_or(Bytes::is_empty),
            RelayBody::Events(_) | RelayBody::Bytes(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RelayBody::Full(bytes, _) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            RelayBody::Bytes(relay) => {
                let first = relay.first.as_ref().map_or(0, |first| first.len() as u64);
                let rest = relay.rest.remaining();
                rest.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(first + rest))
            }
            RelayBody::Events(_) => SizeHint::default(),
        }
    }
}
