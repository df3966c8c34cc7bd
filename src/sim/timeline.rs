//! Pools and queue of the policy `tidegate` over time, for the report's page. Recording does not
//! influence the run.

use tidegate_types::{Moment, Seconds};

/// Pools and queue of a run over time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// Size of the prefill pool after each change, with the time of the change. The first entry is
    /// the start.
    pub prefill_engines: Vec<(Moment, usize)>,
    /// Maximum number of waiting requests in each bin, including prefilled requests without a
    /// decode engine.
    pub queue: Vec<usize>,
    width: Seconds,
}

impl Timeline {
    /// Creates a timeline of `bins` bins that ends at about `end`.
    pub(crate) fn new(end: Moment, bins: usize) -> Timeline {
        let width = (end.since_start() / bins.max(1) as f64).max(Seconds(1e-3));
        Timeline { width, ..Timeline::default() }
    }

    /// Records the size of the prefill pool.
    pub(crate) fn pools(&mut self, now: Moment, prefill_engines: usize) {
        if self.prefill_engines.last().is_none_or(|(_, before)| *before != prefill_engines) {
            self.prefill_engines.push((now, prefill_engines));
        }
    }

    /// Records the number of waiting requests.
    pub(crate) fn waiting(&mut self, now: Moment, requests: usize) {
        let bin = (now.since_start() / self.width) as usize;
        if requests == 0 && bin >= self.queue.len() {
            return;
        }
        if bin >= self.queue.len() {
            self.queue.resize(bin + 1, 0);
        }
        self.queue[bin] = self.queue[bin].max(requests);
    }

    /// Returns the middle of a bin of [`Timeline::queue`], in seconds after the start.
    pub fn middle(&self, bin: usize) -> f64 {
        (bin as f64 + 0.5) * self.width.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Moment {
        Moment::from_start(Seconds(seconds))
    }

    #[test]
    fn a_bin_keeps_its_longest_queue_and_pools_only_their_changes() {
        let mut timeline = Timeline::new(at(10.0), 10);
        for (seconds, waiting) in [(0.1, 0), (2.2, 3), (2.4, 7), (2.9, 0), (4.0, 1)] {
            timeline.waiting(at(seconds), waiting);
        }
        assert_eq!(timeline.queue, [0, 0, 7, 0, 1]);
        assert_eq!(timeline.middle(2), 2.5);
        for (seconds, prefills) in [(0.0, 4), (1.0, 4), (2.0, 5), (3.0, 4)] {
            timeline.pools(at(seconds), prefills);
        }
        assert_eq!(timeline.prefill_engines, [(at(0.0), 4), (at(2.0), 5), (at(3.0), 4)]);
    }
}
