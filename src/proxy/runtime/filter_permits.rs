//! Concurrency limit of the filters on large bodies: by cores, so that reactor threads are not starved,
//! and by memory, so that bodies and working memory stay within 1.5 times the body budget.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Largest body filtered on a reactor thread, in bytes. Tokenizing takes about 5 µs per KB: a larger
/// body would delay the reactor's other streams by more than 0.3 ms.
pub(crate) const INLINE_MAX: usize = 64 << 10;

/// Working memory of the filters per byte of a body, measured with chats of 31 MB and a tokenizer
/// (benches/memory): decoded messages, rendered prompt, 4 bytes per token.
const FILTER_FACTOR: usize = 4;
/// Bytes per memory permit: one acquisition takes at most 2^32 permits.
const UNIT: usize = 1 << 10;

/// Semaphores of the filters' work on large bodies.
#[derive(Debug)]
pub struct FilterPermits {
    cores: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    units: usize,
}

/// Permit for one body, released on drop.
#[derive(Debug)]
pub struct FilterPermit {
    _core: OwnedSemaphorePermit,
    _memory: OwnedSemaphorePermit,
}

impl FilterPermits {
    /// Creates the limits: `cores` less one, and half of the body budget in bytes.
    pub fn new(cores: usize, budget: usize) -> FilterPermits {
        let units = (budget / 2 / UNIT).clamp(1, Semaphore::MAX_PERMITS);
        FilterPermits {
            cores: Arc::new(Semaphore::new(cores.saturating_sub(1).max(1))),
            memory: Arc::new(Semaphore::new(units)),
            units,
        }
    }

    /// Waits in order of arrival. A body that needs more than the whole memory limit takes all of it.
    /// `None` only if a semaphore is closed, which never happens.
    pub async fn acquire(&self, body: usize) -> Option<FilterPermit> {
        let units = (body.saturating_mul(FILTER_FACTOR) / UNIT).clamp(1, self.units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let core = Arc::clone(&self.cores).acquire_owned().await.ok()?;
        let memory = Arc::clone(&self.memory).acquire_many_owned(units).await.ok()?;
        Some(FilterPermit { _core: core, _memory: memory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn acquires(permits: &FilterPermits, body: usize) -> Option<FilterPermit> {
        let mut context = Context::from_waker(Waker::noop());
        match pin!(permits.acquire(body)).poll(&mut context) {
            std::task::Poll::Ready(permit) => Some(permit.unwrap()),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn permits_are_limited_by_cores_and_by_memory() {
        const MIB: usize = 1 << 20;
        let few = FilterPermits::new(3, 1 << 30);
        let two = (acquires(&few, MIB), acquires(&few, MIB));
        assert!(two.0.is_some() && two.1.is_some() && acquires(&few, MIB).is_none());
        drop(two);
        assert!(acquires(&few, MIB).is_some());

        let many = FilterPermits::new(16, 512 * MIB);
        let large = (acquires(&many, 31 * MIB), acquires(&many, 31 * MIB));
        assert!(large.0.is_some() && large.1.is_some());
        assert!(acquires(&many, 31 * MIB).is_none(), "248 of 256 MiB are taken");
        assert!(acquires(&many, MIB).is_some());
        drop(large);
        let alone = acquires(&many, 400 * MIB);
        assert!(alone.is_some() && acquires(&many, MIB).is_none());
        assert!(acquires(&FilterPermits::new(1, 0), usize::MAX).is_some());
    }
}
