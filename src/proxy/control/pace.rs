//! How often the control loop looks: by its settings, and by what its steps take. It must never read
//! a clock.

use tidegate_types::Seconds;

/// How often at least, and how often at most, the planner runs.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Without any event.
    pub interval: Seconds,
    /// Between two runs, however many requests arrive.
    pub gap: Seconds,
}

/// A plan of a large fleet, and a look over many streams, takes longer: the loop rests so many times
/// as long, 2 % of a core each, but no longer than [`REST_MAX`].
const REST: f64 = 50.0;
/// The longest rest.
pub(super) const REST_MAX: Seconds = Seconds(0.02);
/// What a step takes grows by so much at most from one to the next, and falls at once: one that was
/// preempted, for milliseconds on a busy machine, says little.
const GROWTH: f64 = 1.25;

/// What one of the loop's steps usually takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usual(Seconds);

impl Usual {
    /// Of a step that was never taken.
    pub(super) const UNKNOWN: Usual = Usual(Seconds::ZERO);

    /// It took so long this time.
    pub(super) fn took(&mut self, this: Seconds) {
        self.0 = this.min(self.0 * GROWTH + Seconds(1e-6));
    }

    /// How long to rest after it.
    pub(super) fn rest(self) -> Seconds {
        (self.0 * REST).min(REST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_was_preempted_says_little_and_a_long_one_is_believed_in_time() {
        let mut usual = Usual::UNKNOWN;
        (0..100).for_each(|_| usual.took(Seconds(20e-6)));
        usual.took(Seconds(0.005));
        assert!(usual.rest() < Seconds(0.002), "{:?}", usual.rest());
        (0..100).for_each(|_| usual.took(Seconds(0.005)));
        assert_eq!(usual.rest(), REST_MAX);
        usual.took(Seconds(10e-6));
        assert_eq!(usual.rest(), Seconds(10e-6) * REST);
    }
}
