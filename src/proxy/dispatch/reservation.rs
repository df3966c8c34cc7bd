//! A request's reservation on a backend: its charges, and the dispatcher's wake-up when they settle.

use std::sync::Arc;
use tidegate_scheduler::inflight::{PrefillCharge, StreamCharge};
use tidegate_scheduler::placement::Considered;
use tidegate_types::Tokens;

use crate::backends::fleet::Backend;
use crate::dispatch::queue::Signal;

/// One leg's charges on one backend. Dropping it settles the charges and wakes the dispatcher if
/// requests are waiting.
pub struct Reservation {
    /// Where.
    pub backend: Arc<Backend>,
    /// The candidates of its placement, for the record of the request.
    pub considered: Option<Box<[Considered]>>,
    prefill: Option<PrefillCharge>,
    stream: Option<StreamCharge>,
    signal: Arc<Signal>,
}

impl Reservation {
    /// A reservation with the given charges.
    pub fn new(
        backend: Arc<Backend>,
        prefill: Option<PrefillCharge>,
        stream: Option<StreamCharge>,
        signal: Arc<Signal>,
    ) -> Reservation {
        Reservation { backend, considered: None, prefill, stream, signal }
    }

    /// Settles the prefill charge; a stream's charge remains.
    pub fn prefilled(&mut self) {
        if self.prefill.take().is_some() {
            self.signal.room_made();
        }
    }

    /// The prefill should be done by now, and the stream decode: nothing tells of an answer that is
    /// not streamed.
    pub fn presumed_begun(&mut self) {
        self.prefilled();
        if let Some(stream) = &mut self.stream {
            stream.begin();
        }
    }

    /// The leg here turns out to make a stream too, room or not.
    pub fn open_stream(&mut self, kv: Tokens) {
        self.stream = Some(self.backend.account.open_stream(kv));
    }

    /// The stream emitted `tokens` more.
    pub fn emit(&mut self, tokens: u32) {
        if let Some(stream) = &mut self.stream {
            stream.emit(tokens);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.prefill = None;
        self.stream = None;
        self.signal.room_made();
    }
}
