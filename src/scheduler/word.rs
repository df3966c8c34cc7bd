//! A 64-bit word behind a trait, so that the same code runs on the platform's atomics in the proxy,
//! on plain cells in the simulator and, in tests, on shuttle's atomics, which explore the possible
//! interleavings of threads.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// A shared 64-bit word. The prefix index reads "word, holders, word" and needs ordered loads and
/// stores; counters are independent of each other and relaxed.
pub trait Word: Default {
    /// Returns a word with this value.
    fn new(value: u64) -> Self;
    /// Loads with acquire ordering: a reader that sees a holder written by a replacement sees at
    /// least the word that the replacement stored before.
    fn load(&self) -> u64;
    /// Stores with release ordering.
    fn store(&self, value: u64);
    /// Stores `to` if the value is `from`; returns whether it did.
    fn swap_if(&self, from: u64, to: u64) -> bool;
    /// Adds, relaxed; returns the value before.
    fn fetch_add(&self, value: u64) -> u64;
    /// Subtracts, relaxed.
    fn sub(&self, value: u64);
    /// Returns the value, relaxed.
    fn count(&self) -> u64;
    /// Stores the result of `change`, relaxed, and repeats if another thread writes in between.
    /// Returns whether `change` returned a value.
    fn update(&self, change: impl FnMut(u64) -> Option<u64>) -> bool;
}

/// A word for one thread: the simulator's.
#[derive(Debug, Default)]
pub struct LocalWord(Cell<u64>);

impl Word for LocalWord {
    fn new(value: u64) -> LocalWord {
        LocalWord(Cell::new(value))
    }

    fn load(&self) -> u64 {
        self.0.get()
    }

    fn store(&self, value: u64) {
        self.0.set(value);
    }

    fn swap_if(&self, from: u64, to: u64) -> bool {
        let is = self.0.get() == from;
        if is {
            self.0.set(to);
        }
        is
    }

    fn fetch_add(&self, value: u64) -> u64 {
        self.0.replace(self.0.get().wrapping_add(value))
    }

    fn sub(&self, value: u64) {
        self.0.set(self.0.get().wrapping_sub(value));
    }

    fn count(&self) -> u64 {
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

macro_rules! word {
    ($atomic:ty) => {
        impl Word for $atomic {
            fn new(value: u64) -> Self {
                <$atomic>::new(value)
            }

            fn load(&self) -> u64 {
                self.load(Ordering::Acquire)
            }

            fn store(&self, value: u64) {
                self.store(value, Ordering::Release);
            }

            fn swap_if(&self, from: u64, to: u64) -> bool {
                self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            }

            fn fetch_add(&self, value: u64) -> u64 {
                self.fetch_add(value, Ordering::Relaxed)
            }

            fn sub(&self, value: u64) {
                self.fetch_sub(value, Ordering::Relaxed);
            }

            fn count(&self) -> u64 {
                self.load(Ordering::Relaxed)
            }

            fn update(&self, change: impl FnMut(u64) -> Option<u64>) -> bool {
                self.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
            }
        }
    };
}

word!(AtomicU64);
#[cfg(test)]
word!(shuttle::sync::atomic::AtomicU64);
