//! Interval of the control loop, from its settings and the measured duration of its steps. Pure:
//! the caller passes durations.

use tidegate_scheduler::tuning::{PAUSE_FACTOR, PAUSE_MAX};
use tidegate_types::Seconds;

/// Bounds of the planning interval.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two plans without an event.
    pub interval: Seconds,
    /// Between two plans triggered by arrivals.
    pub gap: Seconds,
}

/// Largest growth of the usual duration from one step to the next; decreases apply at once. It
/// filters steps that were preempted, for milliseconds on a busy machine.
const GROWTH: f64 = 1.25;

/// Usual duration of one of the loop's steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct UsualDuration(Seconds);

impl UsualDuration {
    /// Value before the first step.
    pub(super) const UNKNOWN: UsualDuration = UsualDuration(Seconds::ZERO);

    /// Updates the estimate with the duration of a step.
    pub(super) fn took(&mut self, this: Seconds) {
        self.0 = this.min(self.0 * GROWTH + Seconds(1e-6));
    }

    /// Returns the pause after the step.
    pub(super) fn pause(self) -> Seconds {
        (self.0 * PAUSE_FACTOR).min(PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_preempted_step_hardly_moves_the_usual_duration_and_many_long_ones_do() {
        let mut usual = UsualDuration::UNKNOWN;
        (0..100).for_each(|_| usual.took(Seconds(20e-6)));
        usual.took(Seconds(0.005));
        assert!(usual.pause() < Seconds(0.002), "{:?}", usual.pause());
        (0..100).for_each(|_| usual.took(Seconds(0.005)));
        assert_eq!(usual.pause(), PAUSE_MAX);
        usual.took(Seconds(10e-6));
        assert_eq!(usual.pause(), Seconds(10e-6) * PAUSE_FACTOR);
    }
}
