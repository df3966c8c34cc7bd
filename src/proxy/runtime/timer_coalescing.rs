//! Timer coalescing: one shared tick on the clock's 10 ms grid, so that a request's timer is never
//! the earliest.
//!
//! In tokio, arming a timer that is earlier than all others wakes the driver through an eventfd
//! write and one more turn of the reactor. A request that ends within a millisecond disarms its timer
//! again, so that the next request's timer is the earliest: one write and half an `epoll_wait` per
//! request. All request timers are on the grid; while the shared tick is armed for the next grid
//! point, no request timer is earlier.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::runtime::clock::Clock;

/// Ticks without a request timer after which the tick stops, so that an idle proxy does not wake.
const IDLE_TICKS: u32 = 4;

/// The shared tick.
#[derive(Clone, Debug)]
pub struct TimerCoalescing {
    clock: Clock,
    state: Arc<TickState>,
}

/// Whether the tick runs, and whether a request armed a timer since the last tick. Approximate: a race
/// costs one eventfd write.
#[derive(Debug, Default)]
struct TickState {
    ticking: AtomicBool,
    armed: AtomicBool,
}

impl TimerCoalescing {
    /// Creates a tick on this clock's grid; it starts with the first request timer.
    pub fn new(clock: Clock) -> TimerCoalescing {
        TimerCoalescing { clock, state: Arc::default() }
    }

    /// Keeps the tick alive: a request is about to arm a timer on the grid.
    pub fn keep(&self) {
        let TickState { ticking, armed } = &*self.state;
        // Read first: a store would take the cache line from other cores.
        if !armed.load(Relaxed) {
            armed.store(true, Relaxed);
        }
        if !ticking.load(Relaxed) && !ticking.swap(true, Relaxed) {
            tokio::spawn(self.clone().tick());
        }
    }

    async fn tick(self) {
        let mut idle = 0;
        while idle < IDLE_TICKS {
            tokio::time::sleep_until(self.clock.next_coarse()).await;
            let armed = self.state.armed.swap(false, Relaxed);
            idle = if armed { 0 } else { idle + 1 };
        }
        self.state.ticking.store(false, Relaxed);
    }
}
