//! Limit on concurrent hedges, so that hedging does not amplify an overload.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Hedges allowed at any load, so that small fleets can hedge.
const HEDGES_MIN: usize = 2;
/// In-flight requests per further hedge: 5 % may be hedged.
const REQUESTS_PER_HEDGE: usize = 20;

/// Number of hedges in flight.
#[derive(Debug, Default)]
pub struct HedgeLimit(AtomicUsize);

/// Permit for one hedge, released on drop.
pub(crate) struct HedgePermit<'a>(&'a HedgeLimit);

impl Drop for HedgePermit<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

impl HedgeLimit {
    /// A permit, if fewer than 2 + `inflight` / 20 hedges are in flight.
    pub(crate) fn try_acquire(&self, inflight: usize) -> Option<HedgePermit<'_>> {
        let max = HEDGES_MIN + inflight / REQUESTS_PER_HEDGE;
        let permit = HedgePermit(self);
        // Incremented first: the drop of a refused permit decrements.
        (self.0.fetch_add(1, Relaxed) < max).then_some(permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_are_limited_to_two_and_a_share_of_the_inflight_requests() {
        let limit = HedgeLimit::default();
        let permits: Vec<_> = (0..5).map(|_| limit.try_acquire(0)).collect();
        assert_eq!(permits.iter().flatten().count(), HEDGES_MIN);
        assert!(limit.try_acquire(REQUESTS_PER_HEDGE).is_some(), "the limit grows with the load");
        drop(permits);
        assert_eq!(limit.0.load(Relaxed), 0);
    }
}
