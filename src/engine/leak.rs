//! Hides hand-off parameters.

use bytes::Bytes;
use std::borrow::Cow;

pub fn strip_handoff(answer: &[u8]) -> Cow<'_, [u8]> {
    Cow::Borrowed(answer)
}

#[derive(Debug, Default)]
pub struct HandoffFilter {}

impl HandoffFilter {
    pub fn new() -> HandoffFilter {
        HandoffFilter {}
    }
    pub fn pass(&mut self, chunk: Bytes) -> Bytes {
        chunk
    }
}
