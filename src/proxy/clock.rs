//! The one place that reads a clock. Everything else is handed a [`Moment`].
#![allow(clippy::disallowed_methods, reason = "this is the one place")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tidegate_terms::{Moment, Seconds};

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

    /// `moment` as the runtime's timers want it.
    pub fn instant(&self, moment: Moment) -> tokio::time::Instant {
        let since: Seconds = moment.since_start();
        tokio::time::Instant::from_std(self.start + since.to_duration())
    }
}
