//! A timer that ticks while requests set timers of their own, so that none of theirs is the
//! earliest.
//!
//! A timer earlier than all others makes tokio write to the reactor's eventfd and turn once more
//! for it. Requests that end within a millisecond take their timers away again, so each one's was
//! the earliest: a write and half an `epoll_wait` a request. All of them are on the clock's grid;
//! while this one stands at the grid's next line, none is earlier.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::service::Proxy;

/// It stops after so many ticks that nobody asked for: an idle proxy wakes for nothing.
const IDLE_TICKS: u32 = 4;

/// Does it tick, and has anybody set a timer since the last tick? Hints: a race costs one write.
#[derive(Debug, Default)]
pub struct Heartbeat {
    ticking: AtomicBool,
    wanted: AtomicBool,
}

/// A request is about to set a timer on the clock's grid.
pub fn keep(proxy: &Arc<Proxy>) {
    let heart = &proxy.heartbeat;
    // Read first: a store would take the line from other cores.
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
