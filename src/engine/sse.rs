//! Counts tokens in a stream of server-sent events or JSON lines, which is only read, not delayed
//! or changed. An incomplete event is buffered, up to [`EVENT_MAX`] bytes.

mod chunk;
mod native;

use crate::{Endpoint, Usage};
use chunk::Chunks;
pub(crate) use native::{meta_usage, ollama_usage, timings_usage};

/// Observations in some bytes of a stream. The totals of a stream do not depend on how it was
/// split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Seen {
    /// Chunks with generated tokens. vLLM sends one chunk per token, unless it is configured to
    /// bundle them (`stream_interval`, speculative decoding) or the reader is slow; `usage` is
    /// exact.
    pub tokens: u32,
    /// The last usage: that of the answer so far.
    pub usage: Option<Usage>,
    /// `[DONE]`, or its equivalent in the endpoint's protocol.
    pub done: bool,
    /// An error event after HTTP 200.
    pub error: bool,
    /// A chunk with a finish reason.
    pub finished: bool,
    /// An event with information but no token: prompt progress, the answer's id, a ping. The chunk
    /// that only opens an answer with its role does not count.
    pub informative: bool,
}

impl Seen {
    /// Adds later observations.
    #[must_use]
    pub fn and(self, later: Seen) -> Seen {
        Seen {
            tokens: self.tokens.saturating_add(later.tokens),
            usage: later.usage.or(self.usage),
            done: self.done | later.done,
            error: self.error | later.error,
            finished: self.finished | later.finished,
            informative: self.informative | later.informative,
        }
    }
}

/// Limit of an event in bytes. A longer one is not parsed and counts as one token. The longest
/// known are vLLM's first chunks with `prompt_token_ids`, at about 7 bytes per prompt token.
pub const EVENT_MAX: usize = 1 << 20;

/// Capacity in bytes above which a buffer is freed after use.
const KEPT_MAX: usize = 16 << 10;

/// Reader of one stream.
///
/// ```
/// use tidegate_engine::{Endpoint, SseReader};
///
/// let mut reader = SseReader::new(Endpoint::Completions);
/// let chunk = b"data: {\"choices\":[{\"index\":0,\"text\":\" a\"}]}\n\ndata: [DO";
/// assert_eq!(reader.feed(chunk).tokens, 1);
/// assert!(reader.feed(b"NE]\n\n").done);
/// ```
#[derive(Debug)]
pub struct SseReader {
    chunks: Chunks,
    /// Each line is an event (Ollama).
    lines: bool,
    /// The incomplete line.
    line: Vec<u8>,
    /// Data of the incomplete event; its lines joined by line feeds.
    data: Vec<u8>,
    /// The event has a data field, possibly empty.
    has_data: bool,
    /// The event is named `error`.
    named_error: bool,
    /// Part of the line, or of the event, exceeded the limit.
    long_line: bool,
    long_event: bool,
    /// The last byte was a carriage return: a following line feed belongs to it.
    after_cr: bool,
}

impl SseReader {
    /// Creates a reader for the answer to a request at `kind`.
    pub fn new(kind: Endpoint) -> SseReader {
        SseReader {
            chunks: Chunks::new(kind),
            lines: kind.streams_lines(),
            line: Vec::new(),
            data: Vec::new(),
            has_data: false,
            named_error: false,
            long_line: false,
            long_event: false,
            after_cr: false,
        }
    }

    /// From here on each chunk contains the engine's token count; `seen` holds the observations so
    /// far.
    pub fn count_exactly(&mut self, seen: &Seen) {
        self.chunks.count_exactly(seen.tokens);
    }

    /// Reads the next bytes, split anywhere. An event counts once its blank line arrived.
    pub fn feed(&mut self, bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', rest) else {
                self.keep_line(rest);
                break;
            };
            let (line, ended) = (&rest[..end], rest[end]);
            rest = &rest[end + 1..];
            self.after_cr = ended == b'\r';
            if self.line.is_empty() && !self.long_line {
                rest = self.whole_line(line, rest, &mut seen);
            } else {
                self.keep_line(line);
                let line = std::mem::take(&mut self.line);
                self.take_line(&line, &mut seen);
                self.line = recycled(line);
            }
        }
        seen
    }

    /// Reads an event without its blank line at the end of the stream. The SSE standard discards
    /// it, but some servers end with `data: [DONE]`.
    pub fn finish(&mut self) -> Seen {
        let mut seen = Seen::default();
        let line = std::mem::take(&mut self.line);
        self.take_line(&line, &mut seen);
        self.end_event(&mut seen);
        self.after_cr = false;
        seen
    }

    /// Reads a complete line. The usual event is one data line and a blank line in the same chunk,
    /// which is read in place. Returns the remainder of `rest`.
    fn whole_line<'a>(&mut self, line: &[u8], rest: &'a [u8], seen: &mut Seen) -> &'a [u8] {
        let alone = !self.lines && !self.after_cr && !self.has_data && !self.long_event;
        if alone
            && line.len() <= EVENT_MAX
            && let (Some(data), [b'\n', left @ ..]) = (data_of(line), rest)
        {
            self.chunks.read(data, seen);
            seen.error |= std::mem::take(&mut self.named_error);
            return left;
        }
        self.take_line(line, seen);
        rest
    }

    fn take_line(&mut self, line: &[u8], seen: &mut Seen) {
        if std::mem::take(&mut self.long_line) || line.len() > EVENT_MAX {
            self.long_event = true;
        } else if self.lines {
            if !line.is_empty() {
                self.chunks.read(line, seen);
            }
        } else if line.is_empty() {
            self.end_event(seen);
        } else if let Some(data) = data_of(line) {
            self.keep_data(data);
        } else if let Some(name) = line.strip_prefix(b"event:") {
            self.named_error = name.trim_ascii() == b"error";
        } else if let Some(data) = line.strip_prefix(b"error:") {
            // llama.cpp's servers until 2025 sent errors in a field of this name.
            self.named_error = true;
            self.keep_data(data);
        }
    }

    fn end_event(&mut self, seen: &mut Seen) {
        if std::mem::take(&mut self.long_event) {
            seen.tokens += 1;
        } else if self.has_data {
            self.chunks.read(&self.data, seen);
            seen.error |= self.named_error;
        }
        self.named_error = false;
        self.has_data = false;
        self.data = recycled(std::mem::take(&mut self.data));
    }

    /// Number of choices with a finish reason.
    pub fn finished_choices(&self) -> u32 {
        self.chunks.finished_choices()
    }

    /// Returns whether an event with data arrived; comments have none.
    pub fn has_events(&self) -> bool {
        self.chunks.has_events() || self.has_data || self.long_event
    }

    /// Returns whether no event is incomplete.
    pub fn is_between_events(&self) -> bool {
        self.line.is_empty() && !self.long_line && !self.has_data
    }

    fn keep_line(&mut self, piece: &[u8]) {
        if self.long_line || self.line.len() + piece.len() > EVENT_MAX {
            self.long_line = true;
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(piece);
        }
    }

    fn keep_data(&mut self, data: &[u8]) {
        if self.long_event || self.data.len() + data.len() + 1 > EVENT_MAX {
            self.long_event = true;
            self.data = Vec::new();
            return;
        }
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(data);
    }
}

/// Returns the data of a `data` field; `None` for comments and other fields. A byte order mark may
/// precede the first line.
fn data_of(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"data").or_else(|| line.strip_prefix(b"\xef\xbb\xbfdata"))?;
    match rest.strip_prefix(b":") {
        Some(data) => Some(data.strip_prefix(b" ").unwrap_or(data)),
        None => rest.is_empty().then_some(rest),
    }
}

fn recycled(mut buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() > KEPT_MAX {
        return Vec::new();
    }
    buffer.clear();
    buffer
}

#[cfg(test)]
mod tests;
