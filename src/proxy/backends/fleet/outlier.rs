//! Outlier ejection: the share of failed requests of a backend in a sliding window, and the
//! duration of its ejections. Written by requests without a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use tidegate_types::{Moment, Seconds};

/// Parts of the window; an outcome expires at most one eighth of the window late.
const PARTS: usize = 8;
/// Fields of a part, packed into 64 bits: its number, requests, failures.
const COUNT_BITS: u32 = 20;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const PART_MAX: u64 = (1 << (64 - 2 * COUNT_BITS)) - 1;
/// The count of ejections decreases by one for each such multiple of the base ejection time without
/// another ejection.
const FORGOTTEN_AFTER: f64 = 10.0;

/// When a backend is ejected, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct OutlierParams {
    /// Length of the window.
    pub window: Seconds,
    /// Fewest requests in the window for a decision.
    pub requests_min: u32,
    /// Share of failures from which a backend is an outlier, 0 to 1.
    pub failure_share: f64,
    /// Base duration, multiplied by the number of recent ejections.
    pub ejection: Seconds,
    /// Longest ejection.
    pub ejection_max: Seconds,
}

/// The outcomes in the window.
#[derive(Debug, Default)]
pub struct Window {
    parts: [AtomicU64; PARTS],
}

impl Window {
    /// Records an outcome.
    pub fn record(&self, params: &OutlierParams, now: Moment, failed: bool) {
        let number = number(params, now);
        let part = &self.parts[number as usize % PARTS];
        let more = 1 << COUNT_BITS | u64::from(failed);
        // The update is refused only if the part is full.
        part.fetch_update(Relaxed, Relaxed, |part| {
            let (of, requests, _) = fields(part);
            match of == number & PART_MAX {
                true if requests < COUNT_MAX => Some(part + more),
                // The part is full; further outcomes would hardly change the share.
                true => None,
                false => Some((number & PART_MAX) << (2 * COUNT_BITS) | more),
            }
        })
        .ok();
    }

    /// Requests and failures in the window.
    pub fn counts(&self, params: &OutlierParams, now: Moment) -> (u64, u64) {
        let number = number(params, now);
        let parts = self.parts.iter().map(|part| fields(part.load(Relaxed)));
        let fresh = parts.filter(|(of, ..)| (number & PART_MAX).wrapping_sub(*of) < PARTS as u64);
        fresh.fold((0, 0), |(all, bad), (_, requests, failures)| (all + requests, bad + failures))
    }

    /// Whether the failure share reaches the threshold with enough requests.
    pub fn is_outlier(&self, params: &OutlierParams, now: Moment) -> bool {
        let (requests, failures) = self.counts(params, now);
        failures > 0
            && requests >= u64::from(params.requests_min)
            && failures as f64 >= params.failure_share * requests as f64
    }

    /// Clears the window: a returning backend is judged by new outcomes only.
    pub fn clear(&self) {
        for part in &self.parts {
            part.store(0, Relaxed);
        }
    }
}

/// Number of the current part; starts above 0, so that an unused part is never current.
fn number(params: &OutlierParams, now: Moment) -> u64 {
    let part = (params.window / PARTS as f64).get().max(1e-6);
    (now.since_start().get() / part) as u64 + PARTS as u64
}

fn fields(part: u64) -> (u64, u64, u64) {
    (part >> (2 * COUNT_BITS), part >> COUNT_BITS & COUNT_MAX, part & COUNT_MAX)
}

/// Recent ejections and the end of the current one.
#[derive(Debug, Default)]
pub struct Ejections {
    times: AtomicU32,
    until: AtomicU64,
}

impl Ejections {
    /// Ejects from `now` on. Returns for how long.
    pub fn eject(&self, params: &OutlierParams, now: Moment) -> Seconds {
        let since = (now - Moment(self.until.load(Relaxed))).max(Seconds::ZERO);
        let forgotten = (since / (params.ejection * FORGOTTEN_AFTER)) as u32;
        let times = self.times.load(Relaxed).saturating_sub(forgotten) + 1;
        self.times.store(times, Relaxed);
        let span = (params.ejection * f64::from(times)).min(params.ejection_max);
        self.until.store((now + span).0, Relaxed);
        span
    }

    /// Whether the ejection has ended.
    pub fn is_over(&self, now: Moment) -> bool {
        now >= Moment(self.until.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: OutlierParams = OutlierParams {
        window: Seconds(10.0),
        requests_min: 5,
        failure_share: 0.5,
        ejection: Seconds(5.0),
        ejection_max: Seconds(12.0),
    };

    fn at(seconds: f64) -> Moment {
        Moment::START + Seconds(seconds)
    }

    #[test]
    fn a_share_of_failures_counts_from_a_minimum_on_and_only_within_the_window() {
        let window = Window::default();
        for _ in 0..4 {
            window.record(&PARAMS, at(0.0), true);
        }
        assert!(!window.is_outlier(&PARAMS, at(0.0)), "four requests are below the minimum");
        window.record(&PARAMS, at(1.0), true);
        assert!(window.is_outlier(&PARAMS, at(1.0)));
        assert_eq!(window.counts(&PARAMS, at(9.0)), (5, 5));
        for _ in 0..6 {
            window.record(&PARAMS, at(9.0), false);
        }
        assert_eq!(window.counts(&PARAMS, at(9.0)), (11, 5));
        assert!(!window.is_outlier(&PARAMS, at(9.0)), "less than half");
        assert_eq!(
            window.counts(&PARAMS, at(12.0)),
            (6, 0),
            "outcomes before the window have expired"
        );
        assert_eq!(window.counts(&PARAMS, at(60.0)), (0, 0));
        window.record(&PARAMS, at(60.0), true);
        window.clear();
        assert_eq!(window.counts(&PARAMS, at(60.0)), (0, 0));
    }

    #[test]
    fn ejections_grow_up_to_a_limit_and_their_count_decays() {
        let ejections = Ejections::default();
        assert!(ejections.is_over(at(0.0)));
        for (now, span) in [(1000.0, 5.0), (1010.0, 10.0), (1025.0, 12.0), (2000.0, 5.0)] {
            assert_eq!(ejections.eject(&PARAMS, at(now)), Seconds(span), "{now}");
            assert!(!ejections.is_over(at(now + span - 0.01)));
            assert!(ejections.is_over(at(now + span + 0.01)));
        }
    }
}
