//! Lanes for large bodies: how many the filters work on at once. Bounded by cores, so that reactors are
//! not starved, and by memory, so that bodies and what is made of them stay within 1.5 times the budget
//! of bodies.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Memory that the filters take for a byte of a body while they work, measured with chats of 31 MB and
/// a tokenizer (benches/memory): the decoded messages, the rendered prompt, 4 bytes a token, and blocks
/// of the prefix index.
const FILTER_FACTOR: usize = 4;
/// The unit of the memory permits: a semaphore counts to 2^61, but takes 2^32 at once.
const UNIT: usize = 1 << 10;

/// Permits for the filters' work on large bodies.
#[derive(Debug)]
pub struct Lanes {
    cores: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    units: usize,
}

/// One body's lane. Dropping it lets the next one in.
#[derive(Debug)]
pub struct Lane {
    _core: OwnedSemaphorePermit,
    _memory: OwnedSemaphorePermit,
}

impl Lanes {
    /// For a machine with so many cores and a budget of bodies of so many bytes.
    pub fn new(cores: usize, budget: usize) -> Lanes {
        let units = (budget / 2 / UNIT).clamp(1, Semaphore::MAX_PERMITS);
        Lanes {
            cores: Arc::new(Semaphore::new(cores.saturating_sub(1).max(1))),
            memory: Arc::new(Semaphore::new(units)),
            units,
        }
    }

    /// Waits in order of arrival. A body that takes more than all of the memory has it alone. `None`
    /// never comes: nothing closes a lane.
    pub async fn enter(&self, body: usize) -> Option<Lane> {
        let wanted = (body.saturating_mul(FILTER_FACTOR) / UNIT).clamp(1, self.units);
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let core = Arc::clone(&self.cores).acquire_owned().await.ok()?;
        let memory = Arc::clone(&self.memory).acquire_many_owned(wanted).await.ok()?;
        Some(Lane { _core: core, _memory: memory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn enters(lanes: &Lanes, body: usize) -> Option<Lane> {
        let mut context = Context::from_waker(Waker::noop());
        match pin!(lanes.enter(body)).poll(&mut context) {
            std::task::Poll::Ready(lane) => Some(lane.unwrap()),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn lanes_are_bounded_by_cores_and_by_memory() {
        const MIB: usize = 1 << 20;
        let few = Lanes::new(3, 1 << 30);
        let two = (enters(&few, MIB), enters(&few, MIB));
        assert!(two.0.is_some() && two.1.is_some() && enters(&few, MIB).is_none());
        drop(two);
        assert!(enters(&few, MIB).is_some());

        let many = Lanes::new(16, 512 * MIB);
        let large = (enters(&many, 31 * MIB), enters(&many, 31 * MIB));
        assert!(large.0.is_some() && large.1.is_some());
        assert!(enters(&many, 31 * MIB).is_none(), "248 of 256 MiB are taken");
        assert!(enters(&many, MIB).is_some());
        drop(large);
        let alone = enters(&many, 400 * MIB);
        assert!(alone.is_some() && enters(&many, MIB).is_none());
        assert!(enters(&Lanes::new(1, 0), usize::MAX).is_some());
    }
}
