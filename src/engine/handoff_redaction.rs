//! Redaction of hand-off members in answers: they name engines, hosts, ports and KV blocks. The
//! value of such a member is replaced by null, at any depth and for any escaped spelling of its
//! name. Answers without such members are neither copied nor delayed, and text inside strings is
//! not changed.
//!
//! Unless the client may control hand-offs (`Scan::client_handoff`), the chunks of a stream or
//! large answer go through one [`HandoffRedactor`] in order, a whole answer through
//! [`redact_answer`], and an error body through [`redact_error`]. The redactor buffers nothing, so
//! there is no flush. A chunk without members is returned as the same `Bytes`.
//!
//! There are two readers: one search for three texts in a chunk, the common case, and a lexer for
//! chunks that contain one of them or end within a name. A name without escapes contains one of the
//! searched texts. A name with escapes contains `\u004`, `\u005`, `\u006` or `\u007`, because it
//! consists of letters and underscores.
//!
//! A name is recognised by its quotes alone, wherever it is: inside a JSON string they would be
//! escaped. The lexer therefore needs neither the state of strings, which text before the JSON or a
//! truncated event would invert, nor the kind of the answer.

mod dropped;
mod gap;
mod line;
mod name;
mod text;

use aho_corasick::packed::Searcher;
use bytes::Bytes;
use std::borrow::Cow;
use std::sync::LazyLock;

use dropped::{Dropped, DroppedEnd};
use gap::{Gap, GapStep};
use line::LineBegin;
use name::Name;

pub use text::redact_error;

/// Texts that a chunk with a member contains.
const TEXTS: [&str; 3] = [r#"_params""#, r#""bootstrap_"#, ESCAPE];
const ESCAPE: &str = r"\u00";

/// One vectorised pass for all texts. `None` on processors without SSSE3 or NEON; there the lexer
/// reads every chunk.
static FIND: LazyLock<Option<Searcher>> = LazyLock::new(|| Searcher::new(TEXTS));

/// Redacts a whole answer; borrowed if it has no hand-off members.
pub fn redact_answer(answer: &[u8]) -> Cow<'_, [u8]> {
    match is_suspect(answer).then(|| HandoffRedactor::new().lexed(answer)) {
        Some(Some(stripped)) => Cow::Owned(stripped),
        _ => Cow::Borrowed(answer),
    }
}

/// Returns whether the bytes may contain the end of a name.
fn is_suspect(bytes: &[u8]) -> bool {
    let Some(find) = &*FIND else { return true };
    find.find_iter(bytes).any(|found| {
        let is_escape = TEXTS[found.pattern().as_usize()] == ESCAPE;
        // An escaped letter or underscore.
        !is_escape || matches!(bytes.get(found.end()), Some(b'4'..=b'7'))
    })
}

/// Redacts an answer that arrives in chunks, split anywhere.
///
/// ```
/// use bytes::Bytes;
/// use tidegate_engine::HandoffRedactor;
///
/// let mut redactor = HandoffRedactor::new();
/// let first = redactor.pass(Bytes::from(r#"data: {"kv_transfer_params":{"remote_"#));
/// let second = redactor.pass(Bytes::from("host\":\"10.0.0.1\"},\"id\":1}\n\n"));
/// let all = [first, second].concat();
/// assert_eq!(all, b"data: {\"kv_transfer_params\":null,\"id\":1}\n\n");
/// ```
#[derive(Debug)]
pub struct HandoffRedactor {
    state: LexerState,
    /// The line in which the byte at `passed` is.
    line: LineBegin,
    /// Position in the chunk up to which `line` is known.
    passed: usize,
    replacement: Replacement,
}

/// What takes the place of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replacement {
    Null,
    /// An empty value of the same kind and length, for answers whose length the client knows.
    SameLength,
}

#[derive(Clone, Copy, Debug)]
enum LexerState {
    /// Outside of names and values.
    Outside,
    /// After a quote and a text that can become a name.
    Within(Name),
    /// After a quoted name: white space and a colon expected.
    Colon(Gap),
    /// After the colon: white space and the value expected.
    Value(Gap),
    /// Inside the value.
    Dropping(Dropped),
}

/// A chunk with replaced ranges.
struct Edited<'a> {
    chunk: &'a [u8],
    /// Bytes before this position are in `out`, if there is an `out`.
    kept: usize,
    out: Option<Vec<u8>>,
}

impl Edited<'_> {
    /// Keeps the bytes before `end`, then writes `instead`.
    fn put(&mut self, end: usize, instead: &[u8]) {
        let chunk = self.chunk;
        let out = self.out.get_or_insert_with(|| Vec::with_capacity(chunk.len() + 4));
        out.extend_from_slice(&chunk[self.kept..end]);
        out.extend_from_slice(instead);
        self.kept = end;
    }

    /// Keeps the bytes before `from`, and replaces those before `end` by blanks, except the first and
    /// last one of the value and line ends.
    fn blank(&mut self, range: std::ops::Range<usize>, begins: bool, ends: bool, scalar: bool) {
        self.put(range.start, b"");
        let (chunk, last) = (self.chunk, range.end - 1);
        let out = self.out.get_or_insert_default();
        for at in range.clone() {
            out.push(match chunk[at] {
                _ if begins && at == range.start && scalar => b'0',
                byte if begins && at == range.start => byte,
                byte if ends && at == last && !scalar => byte,
                line_end @ (b'\n' | b'\r') => line_end,
                _ => b' ',
            });
        }
        self.kept = range.end;
    }

    /// Drops the bytes before `end`.
    fn drop_to(&mut self, end: usize) {
        self.out.get_or_insert_default();
        self.kept = end;
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        if let Some(out) = &mut self.out {
            out.extend_from_slice(&self.chunk[self.kept..]);
        }
        self.out
    }
}

impl Default for HandoffRedactor {
    fn default() -> HandoffRedactor {
        HandoffRedactor {
            state: LexerState::Outside,
            line: LineBegin::default(),
            passed: 0,
            replacement: Replacement::Null,
        }
    }
}

impl HandoffRedactor {
    /// Creates a redactor for one answer.
    pub fn new() -> HandoffRedactor {
        HandoffRedactor::default()
    }

    /// Creates a redactor that keeps the length of the answer: values become `{}`, `[]`, `""` or 0,
    /// with blanks.
    pub fn keeping_length() -> HandoffRedactor {
        HandoffRedactor { replacement: Replacement::SameLength, ..HandoffRedactor::default() }
    }

    /// Redacts the next chunk. The result is the same `Bytes` unless it contains members; it is
    /// empty if the whole chunk is part of one.
    pub fn pass(&mut self, chunk: Bytes) -> Bytes {
        if matches!(self.state, LexerState::Outside) && !is_suspect(&chunk) {
            // A name contains no line end.
            if !chunk.ends_with(b"\n") {
                self.state = Name::at_end(&chunk).map_or(LexerState::Outside, LexerState::Within);
            }
            self.line.pass(&chunk);
            return chunk;
        }
        match self.lexed(&chunk) {
            Some(stripped) => Bytes::from(stripped),
            None => chunk,
        }
    }

    /// Returns `None` if the chunk is unchanged.
    fn lexed(&mut self, chunk: &[u8]) -> Option<Vec<u8>> {
        let mut edited = Edited { chunk, kept: 0, out: None };
        let mut at = 0;
        while at < chunk.len() {
            at = match self.state {
                LexerState::Outside => match memchr::memchr(b'"', &chunk[at..]) {
                    Some(quote) => {
                        self.state = LexerState::Within(Name::default());
                        at + quote + 1
                    }
                    None => chunk.len(),
                },
                LexerState::Within(name) => self.within(chunk, at, name),
                LexerState::Colon(gap) => self.colon(chunk[at], at, gap),
                LexerState::Value(gap) => self.value(at, gap, &mut edited),
                LexerState::Dropping(dropped) => self.dropping(at, dropped, &mut edited),
            };
        }
        self.line.pass(&chunk[self.passed..]);
        self.passed = 0;
        edited.finish()
    }

    /// Reads a text after a quote, as long as it can become a name; returns the position after it.
    fn within(&mut self, chunk: &[u8], mut at: usize, mut name: Name) -> usize {
        while let Some(byte) = chunk.get(at) {
            if *byte == b'"' && name.is_member() {
                self.line.pass(&chunk[self.passed..at]);
                self.passed = at;
                self.state = LexerState::Colon(Gap::in_line(self.line.is_data()));
                return at + 1;
            }
            if !name.push(*byte) {
                // This byte may be the quote before another name.
                self.state = LexerState::Outside;
                return at;
            }
            at += 1;
        }
        self.state = LexerState::Within(name);
        at
    }

    /// Skips white space and a colon; any other byte means that the text was not a name.
    fn colon(&mut self, byte: u8, at: usize, gap: Gap) -> usize {
        match gap.after(byte) {
            GapStep::Over(gap) => {
                self.state = LexerState::Colon(gap);
                at + 1
            }
            GapStep::Here if byte == b':' => {
                self.state = LexerState::Value(gap);
                at + 1
            }
            GapStep::Here | GapStep::Ends => {
                self.state = LexerState::Outside;
                at
            }
        }
    }

    fn value(&mut self, at: usize, gap: Gap, edited: &mut Edited<'_>) -> usize {
        let first = edited.chunk[at];
        match gap.after(first) {
            GapStep::Over(gap) => {
                self.state = LexerState::Value(gap);
                return at + 1;
            }
            GapStep::Ends => {
                self.state = LexerState::Outside;
                return at;
            }
            GapStep::Here => {}
        }
        match first {
            // Null, or no value.
            b'n' | b',' | b'}' | b']' => self.state = LexerState::Outside,
            _ => {
                if self.replacement == Replacement::Null {
                    edited.put(at, b"null");
                }
                self.state = LexerState::Dropping(Dropped::new(first, gap));
            }
        }
        at
    }

    fn dropping(&mut self, at: usize, mut dropped: Dropped, edited: &mut Edited<'_>) -> usize {
        let chunk = edited.chunk;
        let begins = dropped.is_new();
        let end = dropped.run(&chunk[at..]);
        self.state = end.as_ref().map_or(LexerState::Dropping(dropped), |_| LexerState::Outside);
        let to = match end {
            None => chunk.len(),
            Some(DroppedEnd::Whole(length) | DroppedEnd::CutOff(length)) => at + length,
        };
        if self.replacement == Replacement::SameLength {
            if to > at {
                let ends = matches!(end, Some(DroppedEnd::Whole(_)));
                edited.blank(at..to, begins, ends, dropped.is_scalar());
            }
            return to;
        }
        edited.drop_to(to);
        if matches!(end, Some(DroppedEnd::CutOff(_))) {
            // The first line end of the blank line.
            edited.put(to, &chunk[to..=to]);
        }
        to
    }
}

#[cfg(test)]
#[path = "handoff_redaction_tests.rs"]
mod tests;
