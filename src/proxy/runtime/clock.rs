//! The only code that reads a clock; all other code receives a [`Moment`].
#![allow(clippy::disallowed_methods, reason = "this is the one place")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tidegate_types::{Moment, Seconds};

/// The grid of [`Clock::coarse_instant`]: 10 ms.
const COARSE: Moment = Moment(10_000_000);

/// Monotonic time since the proxy started, and the wall time of the start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    wall_start: Duration,
}

impl Clock {
    /// A clock whose [`Moment::START`] is now.
    pub fn start() -> Clock {
        // A wall clock before 1970 affects only the times in logs.
        let wall_start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { start: Instant::now(), wall_start }
    }

    /// Time since the proxy started.
    pub fn now(&self) -> Moment {
        // 2^64 ns are 584 years.
        Moment(self.start.elapsed().as_nanos() as u64)
    }

    /// `moment` in seconds since the Unix epoch, for logs and the admin API.
    pub fn wall(&self, moment: Moment) -> f64 {
        (self.wall_start + Duration::from_nanos(moment.0)).as_secs_f64()
    }

    /// `moment` in nanoseconds since the Unix epoch, for spans.
    #[cfg(feature = "otlp")]
    pub fn wall_nanos(&self, moment: Moment) -> u64 {
        // 2^64 ns after 1970 are in the year 2554.
        (self.wall_start + Duration::from_nanos(moment.0)).as_nanos() as u64
    }

    /// `moment` rounded up to the next multiple of [`COARSE`], for timers without a need for
    /// precision (timer coalescing, see timer_coalescing.rs).
    pub fn coarse_instant(&self, moment: Moment) -> tokio::time::Instant {
        self.instant(Moment(moment.0.div_ceil(COARSE.0).saturating_mul(COARSE.0)))
    }

    /// The next grid point after now.
    pub fn next_coarse(&self) -> tokio::time::Instant {
        self.coarse_instant(Moment(self.now().0 + 1))
    }

    /// `moment` as an instant of the runtime's timers.
    pub fn instant(&self, moment: Moment) -> tokio::time::Instant {
        let since: Seconds = moment.since_start();
        tokio::time::Instant::from_std(self.start + since.to_duration())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coarse_instant_is_rounded_up_to_the_10_ms_grid() {
        let clock = Clock::start();
        for (at, rounded) in
            [(0, 0), (1, 10_000_000), (10_000_000, 10_000_000), (10_000_001, 20_000_000)]
        {
            assert_eq!(clock.coarse_instant(Moment(at)), clock.instant(Moment(rounded)));
        }
    }
}
