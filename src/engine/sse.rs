//! Incremental SSE reader.

use crate::{Endpoint, Usage};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Seen {
    pub tokens: u32,
    pub usage: Option<Usage>,
    pub done: bool,
    pub error: bool,
    pub finished: bool,
}

#[derive(Debug)]
pub struct SseReader {
    kind: Endpoint,
}

impl SseReader {
    pub fn new(kind: Endpoint) -> SseReader {
        SseReader { kind }
    }
    pub fn feed(&mut self, bytes: &[u8]) -> Seen {
        let _ = (self.kind, bytes);
        Seen::default()
    }
    /// The stream ended: what an event without its closing blank line still tells.
    pub fn finish(&mut self) -> Seen {
        Seen::default()
    }
}
