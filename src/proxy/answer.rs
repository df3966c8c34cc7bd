//! An engine's answer up to its first byte: the last moment at which another engine can still
//! save the request.

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use tidegate_engine::{Endpoint, Seen, SseReader};

use crate::failure::LegProblem;
use crate::seat::Seat;
use crate::upstream::{Answer, ExchangeError, Head, UpstreamBody};
use crate::verdict::Verdict;

/// An answer that is not streamed is read whole up to this size, so that a backend that dies in
/// the middle costs a retry and not the request. Larger ones (embeddings of many inputs) go on as
/// they come.
const WHOLE_ANSWER_MAX: usize = 1 << 20;
/// What may come before the first token (role chunk, keep-alive comments) before it goes on.
const PRELUDE_MAX: usize = 64 << 10;

/// An answer whose first byte is here, and its place on the backend.
pub struct Opened {
    /// Status and headers.
    pub head: Head,
    /// The body.
    pub body: OpenedBody,
    /// Held while the body flows.
    pub seat: Seat,
}

/// How the body comes. Boxed but for the most frequent: an answer is handed on a few times.
pub enum OpenedBody {
    /// All of it is here.
    Complete(Bytes),
    /// Server-sent events; the first ones are here and have been read.
    Events(Box<Begun>),
    /// Too large to wait for: what was read so far, and the rest.
    Large(Box<(Bytes, UpstreamBody)>),
}

/// A stream that has begun.
pub struct Begun {
    /// The bytes up to and with the first token.
    pub first: Bytes,
    /// What `reader` saw in them.
    pub seen: Seen,
    /// Goes on from there.
    pub reader: SseReader,
    /// The rest.
    pub rest: UpstreamBody,
}

/// Read `answer` up to its first byte, or its first token where it streams tokens.
///
/// # Errors
/// [`LegProblem`] when another backend should be tried: it broke off, began with an error event,
/// or has a status that says "not now" ([`is_retryable`]).
pub async fn open(answer: Answer, endpoint: Endpoint) -> Result<(Head, OpenedBody), LegProblem> {
    let Answer { head, body } = answer;
    if is_retryable(head.status) {
        return Err(Verdict::read(head, body).await.into());
    }
    let kind = head.headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let is = |begin: &[u8]| kind.is_some_and(|kind| kind.starts_with(begin));
    let lines = endpoint.streams_lines() && is(b"application/x-ndjson");
    let events = is(b"text/event-stream") || lines;
    let body = match events {
        true => open_events(body, endpoint).await?,
        false => open_bytes(body).await?,
    };
    Ok((head, body))
}

/// May another backend do better? A 4xx is the client's fault on every engine, but for "too many".
pub fn is_retryable(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
        || status == StatusCode::TOO_MANY_REQUESTS
}

/// All of a body.
///
/// # Errors
/// It broke off, or is larger than `max`.
pub async fn read_all(mut body: UpstreamBody, max: usize) -> Result<Bytes, LegProblem> {
    let mut read = Gathered::default();
    while let Some(data) = body.data().await {
        read.push(data.map_err(LegProblem::BrokeOff)?);
        if read.len() > max {
            return Err(ExchangeError::TooLarge(max).into());
        }
    }
    Ok(read.into_bytes())
}

async fn open_bytes(mut body: UpstreamBody) -> Result<OpenedBody, LegProblem> {
    let mut read = Gathered::default();
    while let Some(data) = body.data().await {
        read.push(data.map_err(LegProblem::BrokeOff)?);
        if read.len() > WHOLE_ANSWER_MAX {
            return Ok(OpenedBody::Large(Box::new((read.into_bytes(), body))));
        }
    }
    Ok(OpenedBody::Complete(read.into_bytes()))
}

async fn open_events(mut body: UpstreamBody, endpoint: Endpoint) -> Result<OpenedBody, LegProblem> {
    let mut reader = SseReader::new(endpoint);
    let mut read = Gathered::default();
    let mut seen = Seen::default();
    loop {
        let data = body.data().await.ok_or(ExchangeError::Closed)?;
        let data = data.map_err(LegProblem::BrokeOff)?;
        let more = reader.feed(&data);
        read.push(data);
        if more.error && seen.tokens + more.tokens == 0 {
            return Err(Verdict::in_band(&read.into_bytes()).into());
        }
        seen = Seen {
            tokens: seen.tokens + more.tokens,
            usage: more.usage.or(seen.usage),
            done: seen.done | more.done,
            error: seen.error | more.error,
            finished: seen.finished | more.finished,
        };
        // Only of what generates is it known what a token looks like.
        let wait = endpoint.generates() && !seen.done && !seen.finished && seen.tokens == 0;
        if !wait || read.len() > PRELUDE_MAX {
            let begun = Begun { first: read.into_bytes(), seen, reader, rest: body };
            return Ok(OpenedBody::Events(Box::new(begun)));
        }
    }
}

/// Pieces put together; a single one is not copied.
#[derive(Default)]
struct Gathered {
    first: Bytes,
    all: BytesMut,
}

impl Gathered {
    fn push(&mut self, data: Bytes) {
        if self.len() == 0 {
            self.first = data;
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.all.extend_from_slice(&data);
    }

    fn len(&self) -> usize {
        self.first.len() + self.all.len()
    }

    fn into_bytes(self) -> Bytes {
        if self.all.is_empty() { self.first } else { self.all.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_error_is_final_and_a_busy_engine_is_not() {
        for (status, retry) in [
            (200, false),
            (400, false),
            (404, false),
            (429, true),
            (500, true),
            (501, false),
            (503, true),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(is_retryable(status), retry, "{status}");
        }
    }

    #[test]
    fn gathered_pieces_keep_their_order() {
        let mut gathered = Gathered::default();
        for part in ["", "a", "", "bc", "d"] {
            gathered.push(Bytes::from_static(part.as_bytes()));
        }
        assert_eq!(gathered.into_bytes(), "abcd");
    }
}
