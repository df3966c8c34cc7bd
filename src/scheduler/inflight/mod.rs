//! In-flight accounts: prefill work, decode streams and KV tokens charged to each backend. A charge
//! is made before a leg is sent and settles in its `Drop`, on every path (done, error, cancel,
//! panic).
//!
//! Counters only: no decision, no waiting, no allocation. Several threads charge one account
//! concurrently, which shuttle model-checks (`tests.rs`).

mod account;
mod target_counts;
#[cfg(test)]
mod tests;

pub use account::{
    Account, BacklogBound, Balance, BatchStreams, ConcurrentStreams, PrefillCharge, StreamCharge,
};
