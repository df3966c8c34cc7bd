//! What may be between the name of a member, its colon and its value: white space, and in a
//! server-sent event also ends of its data lines and other lines. The data of one event may span
//! several lines, which readers join; comments and other fields between them do not count.

/// The field whose lines are joined.
const FIELD: &[u8] = b"data:";

/// Position between a name and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// In JSON that is no event: line ends are white space.
    Json,
    /// In the data of an event.
    Data,
    /// At the start of a line of an event; `after_cr`: after a carriage return, to which a line feed
    /// belongs.
    LineStart { after_cr: bool },
    /// After this number of bytes of [`FIELD`].
    Field { matched: u8 },
    /// In a comment or another field.
    OtherField,
}

/// Class of a byte between a name and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GapStep {
    /// Skipped: white space, or part of a line's frame.
    Over(Gap),
    /// The first byte after the gap.
    Here,
    /// The blank line after an event.
    Ends,
}

impl Gap {
    /// The gap after a name in an event's data, or in other JSON.
    pub(super) fn in_line(is_data: bool) -> Gap {
        if is_data { Gap::Data } else { Gap::Json }
    }

    /// Classifies the next byte.
    pub(super) fn after(self, byte: u8) -> GapStep {
        use GapStep::{Ends, Here, Over};
        let line_end = matches!(byte, b'\n' | b'\r');
        let next_line = Over(Gap::LineStart { after_cr: byte == b'\r' });
        match self {
            Gap::Json | Gap::Data if byte == b' ' || byte == b'\t' || byte == 0x0C => Over(self),
            Gap::Json if line_end => Over(self),
            Gap::Json => Here,
            Gap::LineStart { after_cr: true } if byte == b'\n' => {
                Over(Gap::LineStart { after_cr: false })
            }
            Gap::LineStart { .. } if line_end => Ends,
            _ if line_end => next_line,
            Gap::Data => Here,
            Gap::LineStart { .. } => Over(in_field(0, byte)),
            Gap::Field { matched } => Over(in_field(matched, byte)),
            Gap::OtherField => Over(self),
        }
    }
}

fn in_field(matched: u8, byte: u8) -> Gap {
    match FIELD.get(usize::from(matched)) == Some(&byte) {
        true if usize::from(matched) + 1 == FIELD.len() => Gap::Data,
        true => Gap::Field { matched: matched + 1 },
        false => Gap::OtherField,
    }
}
