//! Chunk extension grammar, one byte at a time (RFC 9112, 7.1.1): `;name`, `;name=token` or
//! `;name="quoted"`, with optional blanks. tidegate uses no extension, but enforces the grammar:
//! readers that skip unknown bytes can disagree on the end of the line (request smuggling).

/// State within an extension, after its `;`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extension {
    Start,
    Name,
    NameEnd,
    ValueStart,
    Token,
    Quoted,
    Escaped,
    ValueEnd,
}

impl Extension {
    /// Returns the state after `byte`; `None` if the grammar does not allow it.
    pub(crate) fn step(self, byte: u8) -> Option<Extension> {
        use Extension::{Escaped, Name, NameEnd, Quoted, Start, Token, ValueEnd, ValueStart};
        Some(match (self, byte) {
            (Start, b' ' | b'\t') => Start,
            (Start | Name, _) if is_token(byte) => Name,
            (Name | NameEnd, b' ' | b'\t') => NameEnd,
            (Name | NameEnd, b'=') => ValueStart,
            (Name | NameEnd | Token | ValueEnd, b';') => Start,
            (ValueStart, b' ' | b'\t') => ValueStart,
            (ValueStart, b'"') => Quoted,
            (ValueStart | Token, _) if is_token(byte) => Token,
            (Token | ValueEnd, b' ' | b'\t') => ValueEnd,
            (Quoted, b'"') => ValueEnd,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, _) if is_text(byte) => Quoted,
            _ => return None,
        })
    }

    /// Returns whether the line may end in this state.
    pub(crate) fn may_end(self) -> bool {
        use Extension::{Name, NameEnd, Token, ValueEnd};
        matches!(self, Name | NameEnd | Token | ValueEnd)
    }
}

/// Token characters (RFC 9110, 5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Characters of a field value or quoted string: no control characters except the tab.
pub(crate) fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}
