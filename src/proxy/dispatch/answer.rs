//! Reads an engine's answer up to its first byte or first token. Until then the request can be
//! retried on another engine.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use tidegate_engine::{Endpoint, Seen, SseReader};

use crate::dispatch::reservation::Reservation;
use crate::upstream::error_answer::ErrorAnswer;
use crate::upstream::failure::LegProblem;
use crate::upstream::{ContentCoding, EngineBody, Gathered, coding_of};
use crate::upstream::{EngineAnswer, ExchangeError, Head, Socket, UpstreamBody};

/// Largest JSON answer that is buffered, in bytes. If the backend fails while the answer is
/// buffered, the request is retried. Larger answers, such as embeddings of many inputs, are
/// forwarded as they arrive.
const WHOLE_ANSWER_MAX: usize = 1 << 20;
/// Most bytes buffered before the first token (role chunks); beyond it the answer is forwarded.
const PRELUDE_MAX: usize = 64 << 10;

/// An answer whose first byte has arrived, with its reservation on the backend.
pub struct OpenedAnswer {
    pub head: Head,
    pub body: OpenedBody,
    /// Held until the body ends.
    pub reservation: Reservation,
}

/// How the body arrives. The less frequent variants are boxed: an answer is moved several times.
pub enum OpenedBody {
    /// The body is complete.
    Complete(Bytes),
    /// Server-sent events; the first ones have been read.
    Events(Box<StartedStream>),
    /// The body is forwarded as it arrives.
    Forwarded(Box<ForwardedBody>),
    /// A websocket, after its 101.
    Websocket(Box<UpgradedConnection>),
}

/// Engine connection after a 101.
pub struct UpgradedConnection {
    /// Bytes received with the head.
    pub first: Bytes,
    pub socket: Socket,
}

/// A forwarded body without events: too large to buffer, or not JSON.
pub struct ForwardedBody {
    /// Bytes read so far.
    pub first: Bytes,
    pub rest: EngineBody,
    /// It is not JSON by its content type: redaction keeps the length that its head states.
    pub keeps_length: bool,
}

/// A stream whose first events have been read.
pub struct StartedStream {
    /// Bytes up to and including the first token, or the first event that the client requested.
    pub first: Bytes,
    /// Contents of `first`, as read by `reader`.
    pub seen: Seen,
    /// Continues after `first`.
    pub reader: SseReader,
    pub rest: EngineBody,
}

impl OpenedBody {
    /// Returns whether a token has arrived, which ends the prefill.
    pub fn has_tokens(&self) -> bool {
        match self {
            OpenedBody::Events(begun) => begun.seen.tokens > 0 || begun.seen.finished,
            OpenedBody::Complete(_) | OpenedBody::Forwarded(_) | OpenedBody::Websocket(_) => true,
        }
    }
}

/// Reading mode of an answer, by its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnswerKind {
    /// Server-sent events, or Ollama's lines.
    Events,
    /// JSON, or an error: buffered until complete.
    Buffered,
    /// No content type: JSON or not, by the first byte.
    Unknown,
    /// Text, audio and others: forwarded as they arrive.
    Forwarded,
}

impl AnswerKind {
    fn of(head: &Head, endpoint: Endpoint) -> AnswerKind {
        if !head.status.is_success() {
            return if is_events(media_type(head)) {
                AnswerKind::Events
            } else {
                AnswerKind::Buffered
            };
        }
        let kind = media_type(head);
        let json = |kind: &str| {
            let suffix = kind.len().checked_sub("+json".len()).and_then(|at| kind.get(at..));
            kind.eq_ignore_ascii_case("application/json")
                || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
        };
        let lines = endpoint.streams_lines() && kind.eq_ignore_ascii_case("application/x-ndjson");
        match kind {
            "" => AnswerKind::Unknown,
            kind if is_events(kind) || lines => AnswerKind::Events,
            kind if json(kind) => AnswerKind::Buffered,
            _ => AnswerKind::Forwarded,
        }
    }
}

/// Returns the media type without its parameters; empty if there is none. Compare without case.
fn media_type(head: &Head) -> &str {
    let value = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.split(';').next()).unwrap_or_default().trim()
}

fn is_events(kind: &str) -> bool {
    kind.eq_ignore_ascii_case("text/event-stream")
}

/// Returns whether this answer is a stream of server-sent events.
pub fn streams_events(head: &http::HeaderMap) -> bool {
    let value = head.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    is_events(value.and_then(|value| value.split(';').next()).unwrap_or_default().trim())
}

/// Reads `answer` up to its first byte, or its first token where it streams tokens.
///
/// # Errors
/// [`LegProblem`] when another backend should be tried: it broke off, began with an error event,
/// or has a retryable status ([`is_retryable`]).
pub async fn open(
    answer: EngineAnswer,
    endpoint: Endpoint,
) -> Result<(Head, OpenedBody), LegProblem> {
    let EngineAnswer { mut head, body } = answer;
    if is_retryable(head.status) {
        return Err(ErrorAnswer::read(head, body).await.into());
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let (first, socket) = body.into_socket().ok_or(ExchangeError::Closed)?;
        return Ok((head, OpenedBody::Websocket(Box::new(UpgradedConnection { first, socket }))));
    }
    let form = AnswerKind::of(&head, endpoint);
    let (body, coded) = match coding_of(&head.headers) {
        ContentCoding::Plain => (EngineBody::plain(body), false),
        // An unread answer may contain a hand-off, at any endpoint: stored responses have them too.
        _ => (decoded(&mut head, body)?, true),
    };
    let body = match form {
        AnswerKind::Events => open_events(body, endpoint).await,
        AnswerKind::Buffered | AnswerKind::Unknown => {
            open_bytes(body, form == AnswerKind::Unknown).await
        }
        AnswerKind::Forwarded => open_forwarded(body).await,
    };
    let body = body.map_err(|problem| match problem {
        // Another engine of this kind would send the same coding.
        LegProblem::BrokeOff(error) if coded => LegProblem::Encoded(error.to_string()),
        problem => problem,
    })?;
    Ok((head, body))
}

/// Returns the body without its content coding, and removes the coding from the head.
///
/// # Errors
/// The content coding is not supported.
pub fn decoded(head: &mut Head, body: UpstreamBody) -> Result<EngineBody, LegProblem> {
    match coding_of(&head.headers) {
        ContentCoding::Plain => Ok(EngineBody::plain(body)),
        ContentCoding::Known(coding) => {
            head.headers.remove(CONTENT_ENCODING);
            Ok(EngineBody::decoding(body, coding))
        }
        ContentCoding::Other(coding) => Err(LegProblem::Encoded(coding)),
    }
}

/// Returns whether another backend may succeed. Other engines would repeat a 4xx, except 429.
pub fn is_retryable(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
        || status == StatusCode::TOO_MANY_REQUESTS
}

/// Buffers a JSON answer, or forwards a large one. `sniffed`: the content type is absent, and an answer
/// whose first byte is not JSON's is forwarded.
async fn open_bytes(mut body: EngineBody, sniffed: bool) -> Result<OpenedBody, LegProblem> {
    let mut read = Gathered::default();
    while let Some(data) = body.data().await {
        read.push(data.map_err(LegProblem::BrokeOff)?);
        let first = || read.begin().iter().find(|byte| !byte.is_ascii_whitespace());
        let other = sniffed && first().is_some_and(|first| !matches!(first, b'{' | b'['));
        if read.len() > WHOLE_ANSWER_MAX || other && body.remaining() != Some(0) {
            let forwarded =
                ForwardedBody { first: read.into_bytes(), rest: body, keeps_length: false };
            return Ok(OpenedBody::Forwarded(Box::new(forwarded)));
        }
    }
    Ok(OpenedBody::Complete(read.into_bytes()))
}

/// Awaits the first byte; before it, a failure is retried on another engine.
async fn open_forwarded(mut body: EngineBody) -> Result<OpenedBody, LegProblem> {
    let Some(first) = body.data().await else { return Ok(OpenedBody::Complete(Bytes::new())) };
    let first = first.map_err(LegProblem::BrokeOff)?;
    Ok(match body.remaining() {
        Some(0) => OpenedBody::Complete(first),
        _ => {
            OpenedBody::Forwarded(Box::new(ForwardedBody { first, rest: body, keeps_length: true }))
        }
    })
}

async fn open_events(mut body: EngineBody, endpoint: Endpoint) -> Result<OpenedBody, LegProblem> {
    let mut reader = SseReader::new(endpoint);
    let mut read = Gathered::default();
    let mut seen = Seen::default();
    loop {
        let data = body.data().await.ok_or(ExchangeError::Closed)?;
        let data = data.map_err(LegProblem::BrokeOff)?;
        let more = reader.feed(&data);
        let blank = data.ends_with(b"\n\n") || data.ends_with(b"\r\n\r\n");
        if !reader.has_events() && blank {
            // Comments only: the engine is alive. The client gets tidegate's own comments, if configured.
            read = Gathered::default();
            continue;
        }
        read.push(data);
        if more.error && seen.tokens + more.tokens == 0 {
            return Err(ErrorAnswer::in_band(&read.into_bytes()).into());
        }
        seen = seen.and(more);
        // Tokens are recognised in the answers of generating endpoints only.
        let wait = endpoint.generates()
            && !(seen.done || seen.finished || seen.informative)
            && seen.tokens == 0;
        if !wait || read.len() > PRELUDE_MAX {
            let begun = StartedStream { first: read.into_bytes(), seen, reader, rest: body };
            return Ok(OpenedBody::Events(Box::new(begun)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_errors_are_final_and_overload_is_retried() {
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
    fn content_types_are_compared_without_case_and_parameters() {
        use Endpoint::{ChatCompletions, OllamaChat};
        for (kind, endpoint, form) in [
            ("text/event-stream", ChatCompletions, AnswerKind::Events),
            ("Text/Event-Stream ; charset=utf-8", ChatCompletions, AnswerKind::Events),
            ("application/x-ndjson", OllamaChat, AnswerKind::Events),
            ("application/x-ndjson", ChatCompletions, AnswerKind::Forwarded),
            ("APPLICATION/JSON;charset=utf-8", ChatCompletions, AnswerKind::Buffered),
            ("application/problem+json", ChatCompletions, AnswerKind::Buffered),
            ("application/jsonl", ChatCompletions, AnswerKind::Forwarded),
            ("Audio/pcm", ChatCompletions, AnswerKind::Forwarded),
            ("application/octet-stream", ChatCompletions, AnswerKind::Forwarded),
            ("text/plain", ChatCompletions, AnswerKind::Forwarded),
            ("", ChatCompletions, AnswerKind::Unknown),
        ] {
            let mut head = Head { status: StatusCode::OK, headers: http::HeaderMap::new() };
            head.headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
            assert_eq!(AnswerKind::of(&head, endpoint), form, "{kind}");
            head.status = StatusCode::BAD_REQUEST;
            let events = if is_events(media_type(&head)) {
                AnswerKind::Events
            } else {
                AnswerKind::Buffered
            };
            assert_eq!(AnswerKind::of(&head, endpoint), events, "{kind}");
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
