//! SGLang with disaggregation (docs/spec/engine-protocols.md#sglang): both engines receive the same
//! body concurrently and are matched by a bootstrap room. No other member is changed: the prefill
//! engine stops after one token by itself, and both must render the same prompt.

use crate::{Edits, Scan};
use bytes::Bytes;

use super::{ConcurrentLegs, RendezvousInfo};

/// Bootstrap rooms are integers from 0 to 2^63 - 1; each is used once.
pub(super) const fn room(id: u64) -> u64 {
    id >> 1
}

/// Returns both legs, with the same body.
pub(super) fn legs(body: &Bytes, scan: &Scan, rendezvous: &RendezvousInfo<'_>) -> ConcurrentLegs {
    let host = format!("\"{}\"", rendezvous.host);
    let (port, room) = (rendezvous.port.to_string(), room(rendezvous.id).to_string());
    let both = Edits::new()
        .set("bootstrap_host", host.as_bytes())
        .set("bootstrap_port", port.as_bytes())
        .set("bootstrap_room", room.as_bytes())
        .apply(body, scan);
    ConcurrentLegs { prefill: both.clone().into(), decode: both.into(), decode_first: false }
}
