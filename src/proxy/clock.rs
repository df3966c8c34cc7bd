//! The one place that reads a clock. Everything else is handed a [`Moment`].
#![allow(clippy::disallowed_methods, reason = "this is the one place")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tidegate_types::{Moment, Seconds};

/// The grid of [`Clock::coarse_instant`]: 10 ms.
const COARSE: Moment = Moment(10_000_000);

/// Monotonic time since the proxy started, and the wall time it started at.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    wall_start: Duration,
}

impl Clock {
    /// A clock whose [`Moment::START`] is now.
    pub fn start() -> Clock {
        // A wall clock before 1970 only makes log lines odd: zero will do.
        let wall_start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { start: Instant::now(), wall_start }
    }

    /// Now.
    pub fn now(&self) -> Moment {
        // 2^64 ns are 584 years.
        Moment(self.start.elapsed().as_nanos() as u64)
    }

    /// `moment` as seconds since the Unix epoch, for people and logs.
    pub fn wall(&self, moment: Moment) -> f64 {
        (self.wall_start + Duration::from_nanos(moment.0)).as_secs_f64()
    }

    /// `moment` rounded up to the next full [`COARSE`]: timers that nobody waits for wake the
    /// reactor together. (A timer earlier than all others costs a write to the reactor's eventfd.)
    pub fn coarse_instant(&self, moment: Moment) -> tokio::time::Instant {
        self.instant(Moment(moment.0.div_ceil(COARSE.0).saturating_mul(COARSE.0)))
    }

    /// The grid's next line after now.
    pub fn next_coarse(&self) -> tokio::time::Instant {
        self.coarse_instant(Moment(self.now().0 + 1))
    }

    /// `moment` as the runtime's timers want it.
    pub fn instant(&self, moment: Moment) -> tokio::time::Instant {
        let since: Seconds = moment.since_start();
        tokio::time::Instant::from_std(self.start + since.to_duration())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coarse_timer_is_never_early_and_shares_its_moment_with_its_neighbours() {
        let clock = Clock::start();
        for (at, rounded) in
            [(0, 0), (1, 10_000_000), (10_000_000, 10_000_000), (10_000_001, 20_000_000)]
        {
            assert_eq!(clock.coarse_instant(Moment(at)), clock.instant(Moment(rounded)));
        }
    }
}
