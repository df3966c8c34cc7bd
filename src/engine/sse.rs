//! Counts tokens in a stream of server-sent events as it passes. It must never change, hold back or
//! delay a byte of the stream, and never grow with it: only an event that is not yet complete is
//! kept, and no more than [`EVENT_MAX`] of it.

mod chunk;
mod native;

use crate::{Endpoint, Usage};
use chunk::Chunks;
pub(crate) use native::{meta_usage, ollama_usage, timings_usage};

/// What some bytes of a stream told. Everything since the last call; a stream's totals do not
/// depend on where it was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Seen {
    /// Chunks that carry generated tokens. vLLM sends one chunk a token unless it is told to bundle
    /// them (`stream_interval`, speculative decoding) or the reader is slow; `usage` has the truth.
    pub tokens: u32,
    /// The last usage seen: that of the whole answer so far.
    pub usage: Option<Usage>,
    /// `[DONE]`, or what stands for it in the endpoint's protocol.
    pub done: bool,
    /// An error event: HTTP 200 was sent before the engine failed.
    pub error: bool,
    /// A chunk with a finish reason.
    pub finished: bool,
    /// An event that says something of its own before any token: the progress of the prompt, the
    /// answer's id, a ping. Not the chunk that only opens an answer with its role.
    pub told: bool,
}

impl Seen {
    /// This and what was seen after it.
    #[must_use]
    pub fn and(self, later: Seen) -> Seen {
        Seen {
            tokens: self.tokens.saturating_add(later.tokens),
            usage: later.usage.or(self.usage),
            done: self.done | later.done,
            error: self.error | later.error,
            finished: self.finished | later.finished,
            told: self.told | later.told,
        }
    }
}

/// An event longer than this is not read; it counts as one token. The longest known are vLLM's
/// first chunks with `prompt_token_ids`, some 7 bytes a prompt token.
pub const EVENT_MAX: usize = 1 << 20;

/// Buffers above this go back to the allocator after use.
const KEPT_MAX: usize = 16 << 10;

/// Reads one stream from its first byte.
#[derive(Debug)]
pub struct SseReader {
    chunks: Chunks,
    /// Each line is an event, as in Ollama's streams.
    lines: bool,
    /// The line that is not yet complete.
    line: Vec<u8>,
    /// The data of the event that is not yet complete, its lines joined by line ends.
    data: Vec<u8>,
    /// The event has data; it may be empty.
    has_data: bool,
    /// The event is named `error`, whatever its data is.
    named_error: bool,
    /// Part of the line, or of the event, was too long to keep.
    long_line: bool,
    long_event: bool,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_cr: bool,
}

impl SseReader {
    /// For the answer to a request at `kind`.
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

    /// From here on the engine counts its tokens in every chunk; `seen` is all so far.
    pub fn count_exactly(&mut self, seen: &Seen) {
        self.chunks.count_exactly(seen.tokens);
    }

    /// The next bytes, cut anywhere. Events count once their blank line is here.
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

    /// The stream has ended: what an event without its blank line still tells. Strictly such an
    /// event does not count, but some servers end at `data: [DONE]`.
    pub fn finish(&mut self) -> Seen {
        let mut seen = Seen::default();
        let line = std::mem::take(&mut self.line);
        self.take_line(&line, &mut seen);
        self.end_event(&mut seen);
        self.after_cr = false;
        seen
    }

    /// A line that came in one piece. The usual event is one line of data and a blank line, both
    /// here: it is read where it lies. Returns what is left of `rest`.
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
            // llama.cpp's servers until 2025 had a field of their own for errors.
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

    /// How many of the answer's choices have a finish reason.
    pub fn finished_choices(&self) -> u32 {
        self.chunks.finished_choices()
    }

    /// Has an event with data come? Comments have none.
    pub fn has_events(&self) -> bool {
        self.chunks.has_events() || self.has_data || self.long_event
    }

    /// Has every event so far come to its end?
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

/// The data of a `data` line; `None` for comments and other fields. A byte order mark may precede the
/// first line.
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
