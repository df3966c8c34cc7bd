//! Trailer field grammar, one byte at a time (RFC 9112, 7.1.2). Trailers are not forwarded (RFC
//! 9110, 6.5.1), but malformed ones, and ones that would change framing or routing, are refused:
//! another reader may merge them into the head.

use crate::extension::{is_text, is_token};
use crate::hop::is_hop_by_hop;

/// Length of the longest forbidden name, `proxy-authorization`, plus one.
const NAME_MAX: usize = 20;

/// State of one trailer field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trailer {
    name: [u8; NAME_MAX],
    length: usize,
    in_value: bool,
}

impl Trailer {
    /// State before the first byte.
    pub(crate) const START: Trailer = Trailer { name: [0; NAME_MAX], length: 0, in_value: false };

    /// Processes `byte`; returns false if the grammar does not allow it.
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

    /// Returns whether the line may end in this state.
    pub(crate) fn may_end(&self) -> bool {
        self.in_value
    }
}
