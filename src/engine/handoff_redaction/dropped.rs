//! A value that is dropped.

use super::gap::{Gap, GapStep};

/// Position in a dropped value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropped {
    /// A number, true or false: it ends before the byte that follows it.
    scalar: bool,
    is_new: bool,
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// Position in the frame of an event.
    frame: Gap,
}

/// End of a dropped value.
#[derive(Clone, Copy, Debug)]
pub(super) enum DroppedEnd {
    /// It ends before this position.
    Whole(usize),
    /// It was truncated by the blank line after its event, whose last line end is at this position.
    CutOff(usize),
}

impl Dropped {
    /// The value with this first byte, after a gap.
    pub(super) fn new(first: u8, gap: Gap) -> Dropped {
        let scalar = !matches!(first, b'{' | b'[' | b'"');
        let (depth, in_string, escaped) = (0, false, false);
        Dropped { scalar, is_new: true, depth, in_string, escaped, frame: gap }
    }

    /// Returns whether none of its bytes was read.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    pub(super) fn is_scalar(&self) -> bool {
        self.scalar
    }

    /// Reads the value's bytes; returns its end, if it is here. The blank line after an event ends a
    /// truncated value, so that the next event is not dropped.
    pub(super) fn run(&mut self, bytes: &[u8]) -> Option<DroppedEnd> {
        for (at, byte) in bytes.iter().enumerate() {
            self.is_new = false;
            let delimits = matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n');
            if self.scalar && delimits {
                return Some(DroppedEnd::Whole(at));
            }
            if self.frame != Gap::Json {
                match self.frame.after(*byte) {
                    GapStep::Ends => return Some(DroppedEnd::CutOff(at)),
                    // White space, or no byte of the data.
                    GapStep::Over(frame) => {
                        self.frame = frame;
                        self.escaped = false;
                        continue;
                    }
                    GapStep::Here => {}
                }
            }
            if std::mem::take(&mut self.escaped) {
                continue;
            }
            if self.closes(*byte) && self.depth == 0 && !self.scalar {
                return Some(DroppedEnd::Whole(at + 1));
            }
        }
        None
    }

    /// Counts a byte of the data. Returns whether it closes a string or container.
    fn closes(&mut self, byte: u8) -> bool {
        match byte {
            b'\\' => self.escaped = self.in_string,
            b'"' => {
                self.in_string = !self.in_string;
                return !self.in_string;
            }
            b'{' | b'[' if !self.in_string => self.depth += 1,
            b'}' | b']' if !self.in_string => {
                self.depth = self.depth.saturating_sub(1);
                return true;
            }
            _ => {}
        }
        false
    }
}
