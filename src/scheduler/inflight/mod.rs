//! In-flight accounts: prefill work, decode streams and KV tokens charged to each backend. A charge
//! is made before the await it covers and settles in its `Drop`, on every path (done, error,
//! cancel, panic).
//!
//! Counters only: after the charge is made nothing here decides, waits or allocates. Several
//! threads charge one account concurrently; that is model-checked with shuttle (`tests.rs`).

mod account;
#[cfg(test)]
mod tests;

pub use account::{Account, BacklogBound, Balance, ConcurrentStreams, PrefillCharge, StreamCharge};
