//! The atomics of the platform, or shuttle's when this crate's own tests run: those explore the
//! orders in which threads may interleave.

#[cfg(not(test))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

#[cfg(test)]
pub(crate) use shuttle::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
