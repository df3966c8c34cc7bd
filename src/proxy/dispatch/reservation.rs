//! A request's reservation on a backend: its charges, and the dispatcher's wake-up when they settle.

use std::sync::Arc;
pub use tidegate_scheduler::dispatch::Predicted;
use tidegate_scheduler::inflight::{PrefillCharge, StreamCharge};
use tidegate_scheduler::placement::Considered;
use tidegate_types::{BackendId, Targets, Tokens};

use crate::backends::fleet::Backend;
use crate::dispatch::capacity_signal::CapacitySignal;

/// A request's first leg, with its reservation on a backend.
pub enum ReservedLeg {
    /// A prefill leg; the decode backend is chosen at its end.
    Prefill(Reservation, Predicted),
    /// The only leg of a colocated request.
    Colocated(Reservation, Predicted),
}

impl ReservedLeg {
    pub fn on(&self) -> BackendId {
        match self {
            ReservedLeg::Prefill(reservation, _) | ReservedLeg::Colocated(reservation, _) => {
                reservation.backend.id
            }
        }
    }

    /// Takes the candidates of the placement.
    pub fn take_considered(&mut self) -> Option<Box<[Considered]>> {
        match self {
            ReservedLeg::Prefill(reservation, _) | ReservedLeg::Colocated(reservation, _) => {
                reservation.considered.take()
            }
        }
    }
}

/// One leg's charges on one backend. Dropping it settles the charges and wakes the dispatcher if
/// requests are waiting.
pub struct Reservation {
    pub backend: Arc<Backend>,
    /// Candidates of the placement, for the record of the request.
    pub considered: Option<Box<[Considered]>>,
    prefill: Option<PrefillCharge>,
    stream: Option<StreamCharge>,
    signal: Arc<CapacitySignal>,
}

impl Reservation {
    /// A reservation with the given charges.
    pub fn new(
        backend: Arc<Backend>,
        prefill: Option<PrefillCharge>,
        stream: Option<StreamCharge>,
        signal: Arc<CapacitySignal>,
    ) -> Reservation {
        Reservation { backend, considered: None, prefill, stream, signal }
    }

    /// Settles the prefill charge; a stream's charge remains.
    pub fn prefilled(&mut self) {
        if self.prefill.take().is_some() {
            self.signal.capacity_released();
        }
    }

    /// Settles the prefill at its predicted end and starts the stream. The end is predicted because an
    /// answer that is not streamed does not show it.
    pub fn presume_prefilled(&mut self) {
        self.prefilled();
        if let Some(stream) = &mut self.stream {
            stream.begin();
        }
    }

    /// Charges a stream with these targets to the backend whatever its free capacity.
    pub fn open_stream(&mut self, kv: Tokens, targets: &Targets) {
        self.stream = Some(self.backend.account.open_stream(kv, targets));
    }

    /// Adds `tokens` emitted by the stream.
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
        self.signal.capacity_released();
    }
}
