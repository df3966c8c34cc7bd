//! Keeps hand-off parameters from clients that did not ask for them: they name engines, hosts and
//! ports. `kv_transfer_params` becomes null; it must never copy, hold back or delay an answer that
//! has none, and never touch a `kv_transfer_params` inside a string.
//!
//! How the relay uses it: unless the request's `Scan::client_handoff` is set, a stream's chunks go
//! through one [`HandoffFilter`] each leg, in order, and a whole answer through [`strip_handoff`].
//! Nothing is held back, so there is no flush at the end. A chunk without parameters, which is all
//! but a stream's last ones, comes back as the same `Bytes`.
//!
//! Why a search for the quoted key is enough: inside a JSON string every quote is escaped, so that
//! `params"` there would read `params\"`. What can still look the same is a whole string with that
//! value, and that has no colon after it. The key counts at any depth.

use bytes::Bytes;
use memchr::memmem::Finder;
use std::borrow::Cow;
use std::sync::LazyLock;

const KEY: &[u8] = br#""kv_transfer_params""#;
static KEY_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(KEY));

/// A whole answer without hand-off parameters; borrowed if it has none.
pub fn strip_handoff(answer: &[u8]) -> Cow<'_, [u8]> {
    match HandoffFilter::new().changed(answer) {
        Some(stripped) => Cow::Owned(stripped),
        None => Cow::Borrowed(answer),
    }
}

/// Takes hand-off parameters out of an answer that comes in pieces, split anywhere.
#[derive(Debug, Default)]
pub struct HandoffFilter {
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// This many bytes of the key have gone by.
    Key(usize),
    /// After the key: white space and a colon are to come.
    Colon,
    /// After the colon: white space and the value are to come.
    Value,
    /// Inside the value, whose bytes are dropped.
    Dropping(Dropped),
}

#[derive(Clone, Copy, Debug, Default)]
struct Dropped {
    depth: u32,
    in_string: bool,
    escaped: bool,
    line_end: bool,
}

impl Default for State {
    fn default() -> State {
        State::Key(0)
    }
}

impl HandoffFilter {
    /// For one answer, from its first byte.
    pub fn new() -> HandoffFilter {
        HandoffFilter::default()
    }

    /// The next piece, as the client may see it: the same bytes, uncopied, unless parameters are in
    /// it. May be empty, if all of it is.
    pub fn pass(&mut self, chunk: Bytes) -> Bytes {
        match self.changed(&chunk) {
            Some(stripped) => Bytes::from(stripped),
            None => chunk,
        }
    }

    /// `None` if the piece passes as it is.
    fn changed(&mut self, chunk: &[u8]) -> Option<Vec<u8>> {
        let mut out = None;
        // All before it is already in `out`, if there is an `out`.
        let mut kept = 0;
        let mut at = 0;
        while at < chunk.len() {
            match self.state {
                State::Key(matched) => at = self.seek_key(chunk, at, matched),
                State::Colon => at = self.seek(chunk, at, b':', State::Value),
                State::Value => match chunk[at] {
                    byte if byte.is_ascii_whitespace() => at += 1,
                    b'{' | b'[' => {
                        let out = out.get_or_insert_with(|| Vec::with_capacity(chunk.len() + 4));
                        out.extend_from_slice(&chunk[kept..at]);
                        out.extend_from_slice(b"null");
                        self.state = State::Dropping(Dropped::default());
                        kept = at;
                    }
                    // Null, or something that is no hand-off.
                    _ => self.state = State::Key(0),
                },
                State::Dropping(mut dropped) => {
                    let ended = dropped.run(&chunk[at..]);
                    self.state = ended.map_or(State::Dropping(dropped), |_| State::Key(0));
                    at = ended.map_or(chunk.len(), |length| at + length);
                    kept = at;
                    let out = out.get_or_insert_with(Vec::new);
                    if ended.is_some() && dropped.depth > 0 {
                        // The first line end of the blank line that cut the value off.
                        out.push(b'\n');
                    }
                }
            }
        }
        if let Some(out) = &mut out {
            out.extend_from_slice(&chunk[kept..]);
        }
        out
    }

    /// Looks for the key from `at`, `matched` bytes of which ended the piece before; the position
    /// after it, or the end.
    fn seek_key(&mut self, chunk: &[u8], at: usize, matched: usize) -> usize {
        let rest = &chunk[at..];
        if matched > 0 {
            let wanted = &KEY[matched..];
            let length = wanted.len().min(rest.len());
            if rest[..length] == wanted[..length] {
                let whole = length == wanted.len();
                self.state = if whole { State::Colon } else { State::Key(matched + length) };
                return at + length;
            }
            // The key's only quotes are its ends: no later start among the bytes that matched.
            self.state = State::Key(0);
        }
        if let Some(found) = KEY_FINDER.find(rest) {
            self.state = State::Colon;
            return at + found + KEY.len();
        }
        let tail = &rest[rest.len().saturating_sub(KEY.len() - 1)..];
        let begun = memchr::memrchr(b'"', tail).map(|quote| &tail[quote..]);
        self.state =
            State::Key(begun.filter(|begun| KEY.starts_with(begun)).map_or(0, <[u8]>::len));
        chunk.len()
    }

    /// Goes over white space and `wanted` to `next`; anything else was not the key.
    fn seek(&mut self, chunk: &[u8], at: usize, wanted: u8, next: State) -> usize {
        match chunk[at] {
            byte if byte.is_ascii_whitespace() => at + 1,
            byte if byte == wanted => {
                self.state = next;
                at + 1
            }
            _ => {
                self.state = State::Key(0);
                at
            }
        }
    }
}

impl Dropped {
    /// Runs over the value's bytes; where it ended, if it did. A blank line ends it too: whatever
    /// was cut off there, the next event is not part of it.
    fn run(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            if *byte == b'\n' && std::mem::replace(&mut self.line_end, true) {
                return Some(at);
            }
            self.line_end &= matches!(byte, b'\n' | b'\r');
            if std::mem::take(&mut self.escaped) {
                continue;
            }
            match byte {
                b'\\' => self.escaped = self.in_string,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "leak_tests.rs"]
mod tests;
