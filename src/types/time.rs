//! Time spans and points in time. Pure crates get every `Moment` as an argument.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub, SubAssign};

/// A span of time in seconds; negative where a deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub f64);

impl Seconds {
    /// A span of 0 s.
    pub const ZERO: Seconds = Seconds(0.0);

    /// Returns a span of `millis` milliseconds.
    pub fn from_millis(millis: f64) -> Seconds {
        Seconds(millis / 1e3)
    }

    /// Returns the span in seconds.
    pub const fn get(self) -> f64 {
        self.0
    }

    /// Returns the span in milliseconds.
    pub fn as_millis(self) -> f64 {
        self.0 * 1e3
    }

    /// Returns the larger of two spans.
    #[must_use]
    pub fn max(self, other: Seconds) -> Seconds {
        Seconds(self.0.max(other.0))
    }

    /// Returns the smaller of two spans.
    #[must_use]
    pub fn min(self, other: Seconds) -> Seconds {
        Seconds(self.0.min(other.0))
    }

    /// Converts to a std duration; a negative or non-finite span becomes zero.
    pub fn to_duration(self) -> std::time::Duration {
        std::time::Duration::try_from_secs_f64(self.0).unwrap_or_default()
    }
}

impl From<std::time::Duration> for Seconds {
    fn from(duration: std::time::Duration) -> Seconds {
        Seconds(duration.as_secs_f64())
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s", self.0)
    }
}

impl Add for Seconds {
    type Output = Seconds;
    fn add(self, other: Seconds) -> Seconds {
        Seconds(self.0 + other.0)
    }
}

impl AddAssign for Seconds {
    fn add_assign(&mut self, other: Seconds) {
        self.0 += other.0;
    }
}

impl Sub for Seconds {
    type Output = Seconds;
    fn sub(self, other: Seconds) -> Seconds {
        Seconds(self.0 - other.0)
    }
}

impl SubAssign for Seconds {
    fn sub_assign(&mut self, other: Seconds) {
        self.0 -= other.0;
    }
}

impl Neg for Seconds {
    type Output = Seconds;
    fn neg(self) -> Seconds {
        Seconds(-self.0)
    }
}

impl Mul<f64> for Seconds {
    type Output = Seconds;
    fn mul(self, factor: f64) -> Seconds {
        Seconds(self.0 * factor)
    }
}

impl Div<f64> for Seconds {
    type Output = Seconds;
    fn div(self, divisor: f64) -> Seconds {
        Seconds(self.0 / divisor)
    }
}

impl Div for Seconds {
    type Output = f64;
    fn div(self, other: Seconds) -> f64 {
        self.0 / other.0
    }
}

impl std::iter::Sum for Seconds {
    fn sum<I: Iterator<Item = Seconds>>(spans: I) -> Seconds {
        spans.fold(Seconds::ZERO, Add::add)
    }
}

/// A point on one monotonic clock, in nanoseconds since that clock's start: the proxy's start in
/// the live program, the trace's start in the simulator.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// The clock's start.
    pub const START: Moment = Moment(0);
    /// Later than any other moment.
    pub const NEVER: Moment = Moment(u64::MAX);

    /// Returns the moment `span` after the clock's start.
    pub fn from_start(span: Seconds) -> Moment {
        Moment::START + span
    }

    /// Returns the time since the clock's start.
    pub fn since_start(self) -> Seconds {
        self - Moment::START
    }
}

impl Add<Seconds> for Moment {
    type Output = Moment;
    /// Saturates at both ends; `NEVER` stays `NEVER`.
    fn add(self, span: Seconds) -> Moment {
        if self == Moment::NEVER {
            return self;
        }
        // `as` saturates, and turns NaN into 0.
        if span.0 >= 0.0 {
            Moment(self.0.saturating_add((span.0 * 1e9) as u64))
        } else {
            Moment(self.0.saturating_sub((-span.0 * 1e9) as u64))
        }
    }
}

impl Sub<Seconds> for Moment {
    type Output = Moment;
    fn sub(self, span: Seconds) -> Moment {
        self + -span
    }
}

impl Sub for Moment {
    type Output = Seconds;
    /// Returns the time from `earlier` to `self`; negative if `self` is earlier.
    fn sub(self, earlier: Moment) -> Seconds {
        if self >= earlier {
            Seconds((self.0 - earlier.0) as f64 / 1e9)
        } else {
            Seconds(-((earlier.0 - self.0) as f64 / 1e9))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_moves_both_ways_and_never_wraps() {
        let noon = Moment(5_000_000_000);
        assert_eq!(noon + Seconds(1.5), Moment(6_500_000_000));
        assert_eq!(noon - Seconds(9.0), Moment::START);
        assert_eq!(Moment::NEVER - Seconds(1.0), Moment::NEVER);
        assert_eq!(Moment(1) - Moment(3), Seconds(-2e-9));
        assert_eq!(noon + Seconds(f64::NAN), noon);
    }
}
