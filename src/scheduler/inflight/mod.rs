//! What each backend has been given and not yet given back: prefill work, decode streams, KV
//! tokens. A charge is made before the await it accounts for and settles in its `Drop`, so no
//! path (done, error, cancel, panic) can forget it.
//!
//! Counters only: nothing here decides, waits or allocates after the charge is made. Several
//! threads charge one account at once; that is model-checked with shuttle (`tests.rs`).

mod account;
#[cfg(test)]
mod tests;

pub use account::{Account, Balance, PrefillCharge, PrefillRoom, StreamCharge};
