//! Exponential back-off with jitter: the delay doubles after each failure and is at least the server's
//! `Retry-After`.

use tidegate_types::Seconds;

/// The first delay.
const FIRST: Seconds = Seconds(0.25);
/// The longest delay without `Retry-After`, as client-go's.
const LONGEST: Seconds = Seconds(30.0);
/// The longest `Retry-After` that is respected.
const ASKED_MAX: Seconds = Seconds(120.0);

/// Delays of one list or watch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns the delay before the next attempt. `random` is from 0 to 1; `asked` is Retry-After.
    pub fn failed(&mut self, random: f64, asked: Option<Seconds>) -> Seconds {
        let doubled = FIRST.get() * 2f64.powi(self.failures.min(16) as i32);
        self.failures = self.failures.saturating_add(1);
        let own = doubled.min(LONGEST.get()) * (0.5 + random / 2.0);
        let asked = asked.map_or(0.0, |asked| asked.get().clamp(0.0, ASKED_MAX.get()));
        // Jitter on top of Retry-After: clients that got the same value retry at different times.
        Seconds(own.max(asked + own * f64::from(u8::from(asked > 0.0)) / 2.0))
    }

    /// Resets the delay after a successful attempt.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Number of consecutive failures.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_bound_and_jitter_spreads_them() {
        let mut backoff = Backoff::default();
        let delays: Vec<f64> = (0..8).map(|_| backoff.failed(1.0, None).get()).collect();
        assert_eq!(delays, [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]);
        assert_eq!(backoff.failed(0.0, None).get(), 15.0);
        backoff.succeeded();
        assert_eq!(backoff.failed(0.0, None).get(), 0.125);
    }

    #[test]
    fn retry_after_is_respected_up_to_two_minutes() {
        let mut backoff = Backoff::default();
        let asked =
            |backoff: &mut Backoff, seconds: f64| backoff.failed(0.5, Some(Seconds(seconds))).get();
        assert!(asked(&mut backoff, 5.0) >= 5.0);
        let long = asked(&mut backoff, 1e9);
        assert!((120.0..180.0).contains(&long), "{long}");
        assert!(asked(&mut backoff, 0.0) > 0.0);
    }
}
