//! Timer coalescing: one shared tick on a 10 ms grid.
//!
//! In tokio, arming a timer that is earlier than all others writes to the reactor's eventfd and
//! causes one more turn of the reactor. Requests that end within a millisecond cancel their timers,
//! so each one's timer was the earliest: one write and half an `epoll_wait` a request. All request
//! timers are rounded up to the clock's grid; while the tick is armed for the next grid point, no
//! request's timer is earlier.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::service::Proxy;

/// The tick stops after this many periods without a new timer, so that an idle proxy does not wake
/// up.
const IDLE_TICKS: u32 = 4;

/// Whether the tick runs, and whether a timer was set since its last period. A race costs one
/// eventfd write.
#[derive(Debug, Default)]
pub struct Heartbeat {
    ticking: AtomicBool,
    wanted: AtomicBool,
}

/// Keeps the tick running; called before a request arms a timer on the grid.
pub fn keep(proxy: &Arc<Proxy>) {
    let heart = &proxy.heartbeat;
    // Loads before it stores: a store would invalidate the cache line on other cores.
    if !heart.wanted.load(Relaxed) {
        heart.wanted.store(true, Relaxed);
    }
    if !heart.ticking.load(Relaxed) && !heart.ticking.swap(true, Relaxed) {
        tokio::spawn(tick(Arc::clone(proxy)));
    }
}

async fn tick(proxy: Arc<Proxy>) {
    let mut idle = 0;
    while idle < IDLE_TICKS {
        tokio::time::sleep_until(proxy.clock.next_coarse()).await;
        let wanted = proxy.heartbeat.wanted.swap(false, Relaxed);
        idle = if wanted { 0 } else { idle + 1 };
    }
    proxy.heartbeat.ticking.store(false, Relaxed);
}
