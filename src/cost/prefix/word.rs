//! One atomic word with the orderings the index needs: the platform's, or shuttle's in tests.

use std::sync::atomic::{AtomicU64, Ordering};

/// A shared word. Loads acquire and stores release, which is what a reader's "word, holders, word"
/// needs: if it saw a holder that a replacement wrote, its second look at the word sees at least
/// the word that the replacement had set before.
pub(super) trait Word {
    fn new(value: u64) -> Self;
    fn load(&self) -> u64;
    fn store(&self, value: u64);
    /// Becomes `to` if it is `from`; says whether it was.
    fn swap_if(&self, from: u64, to: u64) -> bool;
    /// The value before.
    fn fetch_add(&self, value: u64) -> u64;
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
        }
    };
}

word!(AtomicU64);
#[cfg(test)]
word!(shuttle::sync::atomic::AtomicU64);
