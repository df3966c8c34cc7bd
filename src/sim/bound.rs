//! Upper bound on the attainment of any scheduler, from a relaxation. Every step of the argument can
//! only raise the bound.
//!
//! A request counts only if its prompt is prefilled within the TTFT target. The fleet therefore
//! does prefill work alone: decoding, hand-offs, KV memory and TPOT cost nothing. Then
//!
//! 1. a prompt token costs its batched share: its compute, plus the least share of the fixed cost
//!    of a step (a step takes at most `chunk` tokens);
//! 2. a prompt whose prefill on an idle engine takes longer than the target is lost;
//! 3. the other requests are divisible: any share may run on any engine at any time between arrival
//!    and deadline, and a completed share of a request counts as that share.
//!
//! The relaxed problem is a linear programme: work with release times and deadlines on one machine
//! of speed N. Feasible sets of work form a polymatroid (Edmonds 1970), so the greedy algorithm is
//! optimal: shortest requests first, each as far as feasible. All windows have the same length, so
//! work is feasible if for all s ≤ u: work arriving in [s, u] ≤ N × (u − s + window). Two segment
//! trees over time answer this query. Time is cut into bins, and windows are widened to whole bins,
//! which again only raises the bound.

use tidegate_types::{Seconds, Slo};

use crate::profile::Profile;
use crate::trace::Trace;

/// Least width of a time bin, in seconds.
const BIN_MIN: f64 = 0.02;
/// Most bins: four arrays of 64 MB. A trace of more than 23 hours has wider bins.
const BINS_MAX: f64 = (1 << 22) as f64;

/// Returns the largest share of the trace's requests, 0..1, that any scheduler on `engines` of
/// `profile` can serve within `slo`. Returns 1 for an empty trace.
pub fn bound(trace: &Trace, profile: &Profile, engines: usize, slo: &Slo) -> f64 {
    let bin = (trace.end().get() / BINS_MAX).max(BIN_MIN);
    let mut jobs: Vec<(f64, usize)> = Vec::with_capacity(trace.arrivals.len());
    for arrival in &trace.arrivals {
        let (alone, shared) = costs(profile, arrival.prompt.as_f64().max(1.0));
        if alone <= slo.ttft {
            jobs.push((shared.get(), (arrival.at.get() / bin) as usize));
        }
    }
    jobs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let bins = jobs.iter().map(|(_, bin)| bin + 1).max().unwrap_or(0);
    let mut feasible =
        FeasibleWork::new(bins, engines as f64 * bin, (slo.ttft.get() / bin) as u32 as usize + 2);
    let served: f64 = jobs.iter().map(|(work, bin)| feasible.add(*bin, *work) / work).sum();
    match trace.arrivals.len() {
        0 => 1.0,
        // An empty sum is −0.
        count => served.abs() / count as f64,
    }
}

/// Returns the prefill time of a prompt alone on an engine, and its least share of engine time when
/// batched with others.
fn costs(profile: &Profile, tokens: f64) -> (Seconds, Seconds) {
    let compute = profile.t_tok * tokens + profile.t_att * (tokens * tokens / 2.0);
    let chunk = profile.chunk.as_f64().max(1.0);
    let alone = compute + profile.t_base * (tokens / chunk).ceil();
    (alone, compute + profile.t_base * (tokens / chunk))
}

/// The prefill work added so far, and how much more is feasible.
struct FeasibleWork {
    /// Engine time of one bin: bin width times engines.
    capacity: f64,
    /// Bins from an arrival to its deadline, both included.
    window: usize,
    /// `capacity` × u − work that arrived up to u.
    after: MinTree,
    /// Work that arrived before s − `capacity` × s.
    before: MinTree,
}

impl FeasibleWork {
    fn new(bins: usize, capacity: f64, window: usize) -> FeasibleWork {
        let after = MinTree::new((0..bins).map(|u| capacity * u as f64).collect());
        let before = MinTree::new((0..bins).map(|s| -capacity * s as f64).collect());
        FeasibleWork { capacity, window, after, before }
    }

    /// Adds as much of `work` as is feasible for an arrival in `bin`, and returns that amount.
    fn add(&mut self, bin: usize, work: f64) -> f64 {
        let last = self.after.len() - 1;
        let feasible = self.capacity * self.window as f64
            + self.after.min(bin, last)
            + self.before.min(0, bin);
        let added = feasible.clamp(0.0, work);
        self.after.add(bin, last, -added);
        if bin < last {
            self.before.add(bin + 1, last, added);
        }
        added
    }
}

/// Segment tree with range add and range minimum.
struct MinTree {
    len: usize,
    /// By node: minimum of the subtree, without the additions at its ancestors.
    min: Vec<f64>,
    added: Vec<f64>,
}

impl MinTree {
    fn new(values: Vec<f64>) -> MinTree {
        let len = values.len();
        let size = len.next_power_of_two().max(1);
        let mut min = vec![f64::INFINITY; 2 * size];
        min[size..size + len].copy_from_slice(&values);
        for node in (1..size).rev() {
            min[node] = min[2 * node].min(min[2 * node + 1]);
        }
        MinTree { len, min, added: vec![0.0; 2 * size] }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn add(&mut self, from: usize, to: usize, value: f64) {
        self.add_below(1, (0, self.min.len() / 2 - 1), (from, to), value);
    }

    fn min(&self, from: usize, to: usize) -> f64 {
        self.min_below(1, (0, self.min.len() / 2 - 1), (from, to))
    }

    fn add_below(&mut self, node: usize, of: (usize, usize), range: (usize, usize), value: f64) {
        if range.1 < of.0 || of.1 < range.0 {
            return;
        }
        if range.0 <= of.0 && of.1 <= range.1 {
            self.min[node] += value;
            self.added[node] += value;
            return;
        }
        let middle = (of.0 + of.1) / 2;
        self.add_below(2 * node, (of.0, middle), range, value);
        self.add_below(2 * node + 1, (middle + 1, of.1), range, value);
        self.min[node] = self.min[2 * node].min(self.min[2 * node + 1]) + self.added[node];
    }

    fn min_below(&self, node: usize, of: (usize, usize), range: (usize, usize)) -> f64 {
        if range.1 < of.0 || of.1 < range.0 {
            return f64::INFINITY;
        }
        if range.0 <= of.0 && of.1 <= range.1 {
            return self.min[node];
        }
        let middle = (of.0 + of.1) / 2;
        let left = self.min_below(2 * node, (of.0, middle), range);
        let right = self.min_below(2 * node + 1, (middle + 1, of.1), range);
        left.min(right) + self.added[node]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::simulate::{SimConfig, simulate};
    use crate::trace::Arrival;
    use proptest::prelude::*;
    use tidegate_types::Tokens;

    fn burst(count: usize, prompt: u64) -> Trace {
        let arrival = |_| Arrival {
            at: Seconds::ZERO,
            prompt: Tokens(prompt),
            output: Tokens(4),
            ..Arrival::default()
        };
        Trace { arrivals: (0..count).map(arrival).collect() }
    }

    #[test]
    fn prefill_work_beyond_the_engines_capacity_is_lost() {
        let (profile, slo) = (Profile::default(), Slo::default());
        let of = |count, prompt| bound(&burst(count, prompt), &profile, 2, &slo);
        assert_eq!(of(2, 2_000), 1.0);
        // 12,000 tokens are 0.95 s of work: two engines compute slightly more than two such prompts
        // in a second.
        let share = of(100, 12_000);
        assert!((0.02..0.024).contains(&share), "{share}");
        assert_eq!(of(5, 20_000), 0.0, "alone longer than the target");
        assert_eq!(bound(&burst(0, 1), &profile, 2, &slo), 1.0);
    }

    #[test]
    fn the_tree_returns_the_minimum_of_any_range() {
        let mut tree = MinTree::new(vec![3.0, 1.0, 4.0, 1.5, 5.0]);
        assert_eq!((tree.min(0, 4), tree.min(2, 4), tree.min(4, 4)), (1.0, 1.5, 5.0));
        tree.add(1, 3, 2.0);
        assert_eq!((tree.min(0, 4), tree.min(1, 1), tree.min(2, 3)), (3.0, 3.0, 3.5));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn no_policy_beats_the_bound(
            engines in 2_usize..5,
            mut requests in prop::collection::vec((0.0_f64..8.0, 1_u64..14_000, 1_u64..60), 1..120),
            ttft in 0.2_f64..1.5,
        ) {
            requests.sort_by(|a, b| a.0.total_cmp(&b.0));
            let arrivals = requests.iter().map(|(at, prompt, output)| Arrival {
                at: Seconds(*at), prompt: Tokens(*prompt), output: Tokens(*output), ..Arrival::default()
            });
            let trace = Trace { arrivals: arrivals.collect() };
            let slo = Slo { ttft: Seconds(ttft), ..Slo::default() };
            let config = SimConfig { engines, slo, ..SimConfig::default() };
            let most = bound(&trace, &config.profile, engines, &slo);
            for policy in [Policy::Aggregated, Policy::Static(1), Policy::Tidegate] {
                let reached = simulate(&trace, 1.0, policy, &config).report.attainment;
                prop_assert!(reached <= most + 1e-9, "{policy}: {reached} > {most}");
            }
        }
    }
}
