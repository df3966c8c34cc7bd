//! A shared 64-bit integer behind a trait. The same code runs on the platform's atomics in the
//! proxy, on plain cells in the simulator, and in tests on shuttle's atomics, which explore the
//! interleavings of threads.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// A shared 64-bit integer. The prefix index is a sequence lock and needs acquire loads and release
/// stores. Counters are independent of each other: their methods are relaxed.
pub trait SharedU64: Default {
    /// Returns an integer with this value.
    fn new(value: u64) -> Self;
    /// Loads with acquire ordering: a reader that sees a value also sees all values that its writer
    /// stored before.
    fn load(&self) -> u64;
    /// Stores with release ordering.
    fn store(&self, value: u64);
    /// Stores `to` if the value is `from`; returns whether it did.
    fn compare_and_set(&self, from: u64, to: u64) -> bool;
    /// Adds, relaxed; returns the value before.
    fn fetch_add(&self, value: u64) -> u64;
    /// Subtracts, relaxed.
    fn subtract(&self, value: u64);
    /// Returns the value, relaxed.
    fn load_relaxed(&self) -> u64;
    /// Stores the result of `change`, relaxed, and repeats if another thread writes in between.
    /// Returns whether `change` returned a value.
    fn update(&self, change: impl FnMut(u64) -> Option<u64>) -> bool;
}

/// The integer of a single thread, for the simulator.
#[derive(Debug, Default)]
pub struct LocalU64(Cell<u64>);

impl SharedU64 for LocalU64 {
    fn new(value: u64) -> LocalU64 {
        LocalU64(Cell::new(value))
    }

    fn load(&self) -> u64 {
        self.0.get()
    }

    fn store(&self, value: u64) {
        self.0.set(value);
    }

    fn compare_and_set(&self, from: u64, to: u64) -> bool {
        let is = self.0.get() == from;
        if is {
            self.0.set(to);
        }
        is
    }

    fn fetch_add(&self, value: u64) -> u64 {
        self.0.replace(self.0.get().wrapping_add(value))
    }

    fn subtract(&self, value: u64) {
        self.0.set(self.0.get().wrapping_sub(value));
    }

    fn load_relaxed(&self) -> u64 {
        self.0.get()
    }

    fn update(&self, mut change: impl FnMut(u64) -> Option<u64>) -> bool {
        let changed = change(self.0.get());
        if let Some(value) = changed {
            self.0.set(value);
        }
        changed.is_some()
    }
}

macro_rules! shared_u64 {
    ($atomic:ty) => {
        impl SharedU64 for $atomic {
            fn new(value: u64) -> Self {
                <$atomic>::new(value)
            }

            fn load(&self) -> u64 {
                self.load(Ordering::Acquire)
            }

            fn store(&self, value: u64) {
                self.store(value, Ordering::Release);
            }

            fn compare_and_set(&self, from: u64, to: u64) -> bool {
                self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            }

            fn fetch_add(&self, value: u64) -> u64 {
                self.fetch_add(value, Ordering::Relaxed)
            }

            fn subtract(&self, value: u64) {
                self.fetch_sub(value, Ordering::Relaxed);
            }

            fn load_relaxed(&self) -> u64 {
                self.load(Ordering::Relaxed)
            }

            fn update(&self, change: impl FnMut(u64) -> Option<u64>) -> bool {
                self.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
            }
        }
    };
}

shared_u64!(AtomicU64);
#[cfg(test)]
shared_u64!(shuttle::sync::atomic::AtomicU64);
