//! The name of a member, read byte by byte after its quote.

use crate::handoff_members::{IN_ANSWERS, NAME_MAX};

/// Most bytes of a name in an answer: every letter escaped.
const SPELT_MAX: usize = 6 * NAME_MAX;

/// Unescaped prefix of a member's name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    text: [u8; NAME_MAX],
    length: usize,
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

impl Default for Name {
    fn default() -> Name {
        Name { text: [0; NAME_MAX], length: 0, escape: Escape::None }
    }
}

impl Name {
    /// The name that begins with the last quote of a chunk and can go on in the next one.
    pub(super) fn at_end(chunk: &[u8]) -> Option<Name> {
        let tail = &chunk[chunk.len().saturating_sub(SPELT_MAX + 1)..];
        let quote = memchr::memrchr(b'"', tail)?;
        let mut name = Name::default();
        tail[quote + 1..].iter().all(|byte| name.push(*byte)).then_some(name)
    }

    /// Appends a byte. Returns whether the text can still become a name.
    pub(super) fn push(&mut self, byte: u8) -> bool {
        self.escape = match (self.escape, byte) {
            (Escape::None, b'\\') => Escape::Begun,
            (Escape::None, letter) => return self.push_letter(letter),
            (Escape::Begun, b'u') => Escape::Hex(0, 0),
            (Escape::Hex(digits, value), byte) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Escape::Hex(digits + 1, value * 16 + digit)
            }
            // Names contain no other escape.
            _ => return false,
        };
        let Escape::Hex(4, value) = self.escape else { return true };
        self.escape = Escape::None;
        u8::try_from(value).is_ok_and(|letter| self.push_letter(letter))
    }

    fn push_letter(&mut self, letter: u8) -> bool {
        if self.length == NAME_MAX {
            return false;
        }
        self.text[self.length] = letter;
        self.length += 1;
        let text = &self.text[..self.length];
        IN_ANSWERS.iter().any(|name| name.as_bytes().starts_with(text))
    }

    /// Returns whether it is complete.
    pub(super) fn is_member(&self) -> bool {
        let text = &self.text[..self.length];
        self.escape == Escape::None && IN_ANSWERS.iter().any(|name| name.as_bytes() == text)
    }
}
