//! Times of reports and sums: 10 ms after a placement or the end of a leg, because others may use or lack
//! that capacity, otherwise every 50 ms.

use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Longest interval.
const EVERY: Duration = Duration::from_millis(50);
/// Shortest interval, and that of looks at the load.
const SOON: Duration = Duration::from_millis(10);
/// Pause after a report, as a multiple of its duration: one of 1,000 backends takes milliseconds.
const REST: u32 = 20;

/// When the next report or sum is due.
pub(super) struct Pacing {
    /// Load at the last one.
    mark: u64,
    made_at: Option<Instant>,
    look_at: Instant,
}

impl Pacing {
    /// The first one is due at once.
    pub(super) fn new() -> Pacing {
        Pacing { mark: 0, made_at: None, look_at: Instant::now() }
    }

    /// Waits for the next look. Cancel-safe.
    pub(super) async fn look(&self) {
        sleep_until(self.look_at).await;
    }

    /// Returns whether a report is due: the load has changed, `is_new`, or the last one is
    /// [`EVERY`] ago. Otherwise the next look is after [`SOON`].
    pub(super) fn is_due(&mut self, mark: u64, is_new: bool) -> bool {
        self.look_at = Instant::now() + SOON;
        let is_old = self.made_at.is_none_or(|at| at.elapsed() >= EVERY);
        is_old || is_new || mark != self.mark
    }

    /// Notes a report at the load `mark` that began at `began`.
    pub(super) fn made(&mut self, mark: u64, began: Instant) {
        (self.mark, self.made_at) = (mark, Some(began));
        self.look_at = began + (began.elapsed() * REST).clamp(SOON, EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_changed_load_is_reported_soon_and_an_unchanged_one_every_50_ms() {
        let began = Instant::now();
        let mut pacing = Pacing::new();
        let mut times = Vec::new();
        while began.elapsed() < Duration::from_millis(200) {
            pacing.look().await;
            // The load changes at 100 ms.
            let mark = u64::from(began.elapsed() >= Duration::from_millis(100));
            if pacing.is_due(mark, false) {
                times.push(began.elapsed().as_millis());
                pacing.made(mark, Instant::now());
            }
        }
        let near = |at: u128, expected: u128| at.abs_diff(expected) <= 12;
        let expected = [0, 50, 100, 150, 200];
        assert!(times.iter().zip(expected).all(|(at, e)| near(*at, e)), "{times:?}");
        pacing.look().await;
        assert!(!pacing.is_due(1, false) && pacing.is_due(2, false) && pacing.is_due(1, true));
    }
}
