//! A trailer field, byte by byte (RFC 9112, 7.1.2): a name, a colon, a value. Trailers are not
//! forwarded (RFC 9110, 6.5.1), but one that is no field, or that would change how the message is
//! framed or routed, is refused: a neighbour may merge it into the head.

use crate::extension::{is_text, is_token};
use crate::hop::is_hop_by_hop;

/// The longest name that must not stand in a trailer, `proxy-authorization`, and one byte more.
const NAME_MAX: usize = 20;

/// One trailer field so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trailer {
    name: [u8; NAME_MAX],
    length: usize,
    in_value: bool,
}

impl Trailer {
    /// Before its first byte.
    pub(crate) const START: Trailer = Trailer { name: [0; NAME_MAX], length: 0, in_value: false };

    /// Take `byte`; false: it cannot stand here.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        if self.in_value {
            return is_text(byte);
        }
        if byte == b':' {
            self.in_value = true;
            let name = &self.name[..self.length.min(NAME_MAX)];
            return self.length > 0 && !(self.length < NAME_MAX && is_hop_by_hop(name));
        }
        if let Some(slot) = self.name.get_mut(self.length) {
            *slot = byte;
        }
        self.length += 1;
        is_token(byte)
    }

    /// May the line end here?
    pub(crate) fn may_end(&self) -> bool {
        self.in_value
    }
}
