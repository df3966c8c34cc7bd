//! Keeps hand-off members from clients: they name engines, hosts, ports and KV blocks. The value of
//! such a member becomes null, at any depth, however the name is escaped. The filter does not copy,
//! hold back or delay an answer that has none, and does not touch text inside strings.
//!
//! Use: unless the client may drive hand-offs itself (`Scan::client_handoff`), a stream's chunks and
//! the pieces of a large answer go through one [`HandoffRedactor`], in order, a whole answer through
//! [`strip_handoff`], and an error's body through [`strip_error`]. Nothing is held back, so there is
//! no flush at the end. A chunk without members comes back as the same `Bytes`.
//!
//! Two readers: three substring searches for a chunk of whole lines, which is the usual one, and a
//! lexer for all others. A JSON string has no raw line end, so a line begins outside of strings. A
//! name without escapes contains one of the searched texts; a name with escapes has `\u004`,
//! `\u005`, `\u006` or `\u007`, since it consists of letters and underscores.

mod text;

use bytes::Bytes;
use memchr::memmem::Finder;
use std::borrow::Cow;
use std::sync::LazyLock;

use crate::handoff_members::{IN_ANSWERS, NAME_MAX};

pub use text::strip_error;

struct MemberFinders {
    params: Finder<'static>,
    bootstrap: Finder<'static>,
    escape: Finder<'static>,
}

static FIND: LazyLock<MemberFinders> = LazyLock::new(|| MemberFinders {
    params: Finder::new(br#"_params""#),
    bootstrap: Finder::new(br#""bootstrap_"#),
    escape: Finder::new(br"\u00"),
});

/// A whole answer without hand-off members; borrowed if it has none.
pub fn strip_handoff(answer: &[u8]) -> Cow<'_, [u8]> {
    match is_suspect(answer).then(|| HandoffRedactor::new().lexed(answer)) {
        Some(Some(stripped)) => Cow::Owned(stripped),
        _ => Cow::Borrowed(answer),
    }
}

/// May there be a member in these bytes, which begin outside of strings?
fn is_suspect(bytes: &[u8]) -> bool {
    FIND.params.find(bytes).is_some() || FIND.bootstrap.find(bytes).is_some() || has_escape(bytes)
}

/// Is there an escaped letter or underscore?
fn has_escape(bytes: &[u8]) -> bool {
    let mut found = FIND.escape.find_iter(bytes);
    found.any(|at| matches!(bytes.get(at + 4), Some(b'4'..=b'7')))
}

/// Takes hand-off members out of an answer that comes in pieces, split anywhere.
#[derive(Debug)]
pub struct HandoffRedactor {
    state: LexerState,
    /// The next byte begins a line.
    at_line: bool,
}

#[derive(Clone, Copy, Debug)]
enum LexerState {
    /// Outside of strings.
    Outside,
    /// Inside a string.
    Within(Name),
    /// After a string that is the name of a member: white space and a colon are to come.
    Colon,
    /// After the colon: white space and the value are to come.
    Value,
    /// Inside the value, whose bytes are dropped.
    Dropping(Dropped),
}

/// A string that may become a name, without its escapes.
#[derive(Clone, Copy, Debug)]
struct Name {
    text: [u8; NAME_MAX],
    length: usize,
    /// It can still become one.
    fits: bool,
    escape: Escape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    /// A backslash came.
    Begun,
    /// `\u` and so many digits of this value came.
    Hex(u8, u32),
}

#[derive(Clone, Copy, Debug, Default)]
struct Dropped {
    /// A number, true or false: it ends before what follows it.
    scalar: bool,
    depth: u32,
    in_string: bool,
    escaped: bool,
    line_end: bool,
}

/// How a dropped value ended.
enum DroppedEnd {
    /// With the byte before this position.
    Whole(usize),
    /// Cut off by a blank line, the second line end of which is here.
    CutOff(usize),
}

/// A chunk of which some stretches are replaced.
struct Edited<'a> {
    chunk: &'a [u8],
    /// All before it is in `out`, if there is an `out`.
    kept: usize,
    out: Option<Vec<u8>>,
}

impl Edited<'_> {
    /// Keep all up to `end`, then write `instead`.
    fn put(&mut self, end: usize, instead: &[u8]) {
        let chunk = self.chunk;
        let out = self.out.get_or_insert_with(|| Vec::with_capacity(chunk.len() + 4));
        out.extend_from_slice(&chunk[self.kept..end]);
        out.extend_from_slice(instead);
        self.kept = end;
    }

    /// Leave out all up to `end`.
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
    /// For one answer, from its first byte.
    pub fn new() -> HandoffRedactor {
        HandoffRedactor::default()
    }

    /// The next piece, as the client may see it: the same bytes, uncopied, unless members are in
    /// it. May be empty, if all of it is part of one.
    pub fn pass(&mut self, chunk: Bytes) -> Bytes {
        if self.at_line && chunk.ends_with(b"\n") && !is_suspect(&chunk) {
            return chunk;
        }
        match self.lexed(&chunk) {
            Some(stripped) => Bytes::from(stripped),
            None => chunk,
        }
    }

    /// `None` if the piece passes as it is.
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
                LexerState::Colon => self.colon(chunk[at], at),
                LexerState::Value => self.value(at, &mut edited),
                LexerState::Dropping(dropped) => self.dropping(at, dropped, &mut edited),
            };
        }
        if let Some(last) = chunk.last() {
            self.at_line = *last == b'\n' && matches!(self.state, LexerState::Outside);
        }
        edited.finish()
    }

    /// Goes over a string up to its end; the position after it, or the end.
    fn within(&mut self, chunk: &[u8], mut at: usize, mut name: Name) -> usize {
        while let Some(byte) = chunk.get(at).copied() {
            at += 1;
            if name.escape != Escape::None {
                name.escaped(byte);
                continue;
            }
            match byte {
                b'"' => {
                    self.state =
                        if name.is_member() { LexerState::Colon } else { LexerState::Outside };
                    return at;
                }
                // A string has no line end: it was cut off, and the next line is not part of it.
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

    /// Goes over white space and a colon; anything else shows that the string was no name.
    fn colon(&mut self, byte: u8, at: usize) -> usize {
        match byte {
            byte if byte.is_ascii_whitespace() => at + 1,
            b':' => {
                self.state = LexerState::Value;
                at + 1
            }
            _ => {
                self.state = LexerState::Outside;
                at
            }
        }
    }

    fn value(&mut self, at: usize, edited: &mut Edited<'_>) -> usize {
        let first = edited.chunk[at];
        if first.is_ascii_whitespace() {
            return at + 1;
        }
        let scalar = matches!(first, b'-' | b'0'..=b'9' | b't' | b'f');
        if scalar || matches!(first, b'{' | b'[' | b'"') {
            edited.put(at, b"null");
            self.state = LexerState::Dropping(Dropped { scalar, ..Dropped::default() });
        } else {
            // Null, or an event that was cut off.
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

    /// The next byte of an escape.
    fn escaped(&mut self, byte: u8) {
        self.escape = match (self.escape, byte) {
            (Escape::Begun, b'u') => Escape::Hex(0, 0),
            (Escape::Hex(digits, value), byte) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Escape::Hex(digits + 1, value * 16 + digit)
            }
            // No name has another escape.
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
    /// Runs over the value's bytes; where it ended, if it did. A blank line ends it too: whatever
    /// was cut off there, the next event is not part of it.
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
