//! A chunk extension, byte by byte (RFC 9112, 7.1.1): `;name`, `;name=token` or `;name="quoted"`,
//! with blanks around the signs. tidegate uses none. A reader that skips what it does not
//! understand can be led to another end of the line than its neighbour, so the grammar is enforced.

/// Where in an extension the reader is, after its `;`.
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
    /// The state after `byte`; `None`: it cannot stand here.
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

    /// May the line end here?
    pub(crate) fn may_end(self) -> bool {
        use Extension::{Name, NameEnd, Token, ValueEnd};
        matches!(self, Name | NameEnd | Token | ValueEnd)
    }
}

/// RFC 9110, 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte of a field value or a quoted string: no control character but the tab.
pub(crate) fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}
