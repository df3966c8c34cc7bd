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
//! There are two readers: one search for three texts in a chunk of whole lines, the common case, and
//! a lexer for all others. A JSON string contains no raw line end, so that a line starts outside of
//! strings. A name without escapes contains one of the searched texts. A name with escapes contains
//! `\u004`, `\u005`, `\u006` or `\u007`, because it consists of letters and underscores.

mod text;

use aho_corasick::packed::Searcher;
use bytes::Bytes;
use std::borrow::Cow;
use std::sync::LazyLock;

use crate::handoff_members::{IN_ANSWERS, NAME_MAX};

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

/// Returns whether the bytes, which start outside of strings, may contain a member.
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
    /// The next byte starts a line.
    at_line: bool,
}

#[derive(Clone, Copy, Debug)]
enum LexerState {
    /// Outside of strings.
    Outside,
    /// Inside a string.
    Within(Name),
    /// After a string equal to a member's name: white space and a colon expected.
    Colon(Gap),
    /// After the colon: white space and the value expected.
    Value(Gap),
    /// Inside the value, whose bytes are dropped.
    Dropping(Dropped),
}

/// Position between a name and its value. The data of one SSE event may span several `data:` lines,
/// with other fields between them; readers join these lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gap {
    /// In data.
    Data,
    /// At the start of a line.
    LineStart,
    /// After this number of bytes of the field name `data:`.
    Prefix(u8),
    /// In a comment or another field.
    OtherField,
    /// After a blank line.
    BlankLine,
}

/// Class of a byte between a name and its value.
enum RedactionStep {
    /// Skipped: white space, the colon or a field name.
    Over(Gap),
    /// The first byte after the gap.
    Here(Gap),
    /// First byte of the next event.
    Ends,
}

/// Unescaped prefix of a string, as long as it can be a member's name.
#[derive(Clone, Copy, Debug)]
struct Name {
    text: [u8; NAME_MAX],
    length: usize,
    /// The string can still become a name.
    fits: bool,
    escape: Escape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    /// After a backslash.
    Begun,
    /// After `\u` and this number of hex digits; their value.
    Hex(u8, u32),
}

#[derive(Clone, Copy, Debug, Default)]
struct Dropped {
    /// A number, true or false: it ends before the byte that follows it.
    scalar: bool,
    depth: u32,
    in_string: bool,
    escaped: bool,
    line_end: bool,
}

/// End of a dropped value.
enum DroppedEnd {
    /// It ends before this position.
    Whole(usize),
    /// It was truncated by a blank line, whose second line end is at this position.
    CutOff(usize),
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
        HandoffRedactor { state: LexerState::Outside, at_line: true }
    }
}

impl HandoffRedactor {
    /// Creates a redactor for one answer.
    pub fn new() -> HandoffRedactor {
        HandoffRedactor::default()
    }

    /// Redacts the next chunk. The result is the same `Bytes` unless it contains members; it is
    /// empty if the whole chunk is part of one.
    pub fn pass(&mut self, chunk: Bytes) -> Bytes {
        if self.at_line && chunk.ends_with(b"\n") && !is_suspect(&chunk) {
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
        if let Some(last) = chunk.last() {
            self.at_line = *last == b'\n' && matches!(self.state, LexerState::Outside);
        }
        edited.finish()
    }

    /// Reads a string up to its end; returns the position after it.
    fn within(&mut self, chunk: &[u8], mut at: usize, mut name: Name) -> usize {
        while let Some(byte) = chunk.get(at).copied() {
            at += 1;
            if name.escape != Escape::None {
                name.escaped(byte);
                continue;
            }
            match byte {
                b'"' => {
                    self.state = match name.is_member() {
                        true => LexerState::Colon(Gap::Data),
                        false => LexerState::Outside,
                    };
                    return at;
                }
                // Strings contain no raw line end: this one was truncated, and the next line starts
                // afresh.
                b'\n' => {
                    self.state = LexerState::Outside;
                    return at;
                }
                b'\\' => name.escape = Escape::Begun,
                _ if name.fits => name.push(byte),
                _ => {
                    let rest = &chunk[at..];
                    at += memchr::memchr3(b'"', b'\\', b'\n', rest).unwrap_or(rest.len());
                }
            }
        }
        self.state = LexerState::Within(name);
        at
    }

    /// Skips white space and a colon; any other byte means that the string was not a name.
    fn colon(&mut self, byte: u8, at: usize, gap: Gap) -> usize {
        match gap.after(byte, false) {
            RedactionStep::Over(gap) => {
                self.state = LexerState::Colon(gap);
                at + 1
            }
            RedactionStep::Here(gap) if byte == b':' => {
                self.state = LexerState::Value(gap);
                at + 1
            }
            RedactionStep::Here(_) | RedactionStep::Ends => {
                self.state = LexerState::Outside;
                at
            }
        }
    }

    fn value(&mut self, at: usize, gap: Gap, edited: &mut Edited<'_>) -> usize {
        let first = edited.chunk[at];
        match gap.after(first, true) {
            RedactionStep::Over(gap) => {
                self.state = LexerState::Value(gap);
                return at + 1;
            }
            RedactionStep::Ends => {
                self.state = LexerState::Outside;
                return at;
            }
            RedactionStep::Here(_) => {}
        }
        let scalar = matches!(first, b'-' | b'0'..=b'9' | b't' | b'f');
        if scalar || matches!(first, b'{' | b'[' | b'"') {
            edited.put(at, b"null");
            self.state = LexerState::Dropping(Dropped { scalar, ..Dropped::default() });
        } else {
            // Null, or a truncated event.
            self.state = LexerState::Outside;
        }
        at
    }

    fn dropping(&mut self, at: usize, mut dropped: Dropped, edited: &mut Edited<'_>) -> usize {
        let chunk = edited.chunk;
        let end = dropped.run(&chunk[at..]);
        self.state = end.as_ref().map_or(LexerState::Dropping(dropped), |_| LexerState::Outside);
        match end {
            None => {
                edited.drop_to(chunk.len());
                chunk.len()
            }
            Some(DroppedEnd::Whole(length)) => {
                edited.drop_to(at + length);
                at + length
            }
            Some(DroppedEnd::CutOff(length)) => {
                edited.drop_to(at + length);
                // The first line end of the blank line.
                edited.put(at + length, b"\n");
                at + length
            }
        }
    }
}

impl Gap {
    /// Classifies the next byte. `valued`: the colon was read.
    fn after(self, byte: u8, valued: bool) -> RedactionStep {
        const DATA: &[u8] = b"data:";
        match (self, byte) {
            // White space of JSON, or the end of a truncated event: the next byte decides.
            (Gap::LineStart | Gap::BlankLine, b'\n') => RedactionStep::Over(Gap::BlankLine),
            (Gap::BlankLine, b'd' | b'e' | b'i' | b'r') => RedactionStep::Ends,
            (Gap::BlankLine, b':') if valued => RedactionStep::Ends,
            (Gap::BlankLine, byte) if byte.is_ascii_whitespace() => {
                RedactionStep::Over(Gap::BlankLine)
            }
            (_, b'\n') => RedactionStep::Over(Gap::LineStart),
            (Gap::OtherField, _) | (Gap::LineStart, b'\r') => RedactionStep::Over(self),
            (Gap::LineStart, b'd') => RedactionStep::Over(Gap::Prefix(1)),
            (Gap::LineStart, b'e' | b'i' | b'r') => RedactionStep::Over(Gap::OtherField),
            (Gap::LineStart, b':') if valued => RedactionStep::Over(Gap::OtherField),
            (Gap::Prefix(matched), byte) => {
                let matched = usize::from(matched);
                match DATA.get(matched) == Some(&byte) {
                    true if matched + 1 == DATA.len() => RedactionStep::Over(Gap::Data),
                    true => RedactionStep::Over(Gap::Prefix(matched as u8 + 1)),
                    false => RedactionStep::Over(Gap::OtherField),
                }
            }
            (_, byte) if byte.is_ascii_whitespace() => RedactionStep::Over(Gap::Data),
            _ => RedactionStep::Here(Gap::Data),
        }
    }
}

impl Default for Name {
    fn default() -> Name {
        Name { text: [0; NAME_MAX], length: 0, fits: true, escape: Escape::None }
    }
}

impl Name {
    fn push(&mut self, byte: u8) {
        if self.length == NAME_MAX {
            self.fits = false;
            return;
        }
        self.text[self.length] = byte;
        self.length += 1;
        let text = &self.text[..self.length];
        self.fits = IN_ANSWERS.iter().any(|name| name.as_bytes().starts_with(text));
    }

    /// Processes the next byte of an escape.
    fn escaped(&mut self, byte: u8) {
        self.escape = match (self.escape, byte) {
            (Escape::Begun, b'u') => Escape::Hex(0, 0),
            (Escape::Hex(digits, value), byte) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Escape::Hex(digits + 1, value * 16 + digit)
            }
            // Names contain no other escape.
            _ => {
                self.fits = false;
                Escape::None
            }
        };
        if let Escape::Hex(4, value) = self.escape {
            self.escape = Escape::None;
            match u8::try_from(value) {
                Ok(byte) if self.fits => self.push(byte),
                _ => self.fits = false,
            }
        }
    }

    fn is_member(&self) -> bool {
        let text = &self.text[..self.length];
        self.fits && IN_ANSWERS.iter().any(|name| name.as_bytes() == text)
    }
}

impl Dropped {
    /// Reads the value's bytes; returns its end, if it is here. A blank line ends a truncated
    /// value, so that the next event is not dropped.
    fn run(&mut self, bytes: &[u8]) -> Option<DroppedEnd> {
        for (at, byte) in bytes.iter().enumerate() {
            if self.scalar && matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n') {
                return Some(DroppedEnd::Whole(at));
            }
            if *byte == b'\n' && std::mem::replace(&mut self.line_end, true) {
                return Some(DroppedEnd::CutOff(at));
            }
            self.line_end &= matches!(byte, b'\n' | b'\r');
            if std::mem::take(&mut self.escaped) {
                continue;
            }
            let mut closes = false;
            match byte {
                b'\\' => self.escaped = self.in_string,
                b'"' => {
                    self.in_string = !self.in_string;
                    closes = !self.in_string;
                }
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    closes = true;
                }
                _ => {}
            }
            if closes && self.depth == 0 && !self.scalar {
                return Some(DroppedEnd::Whole(at + 1));
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "handoff_redaction_tests.rs"]
mod tests;
