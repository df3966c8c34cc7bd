//! Counters of a pool's arrivals. Requests add to them on arrival; the control loop reads them.

use crate::planner::GroupDemand;
use crate::shared_u64::SharedU64;
use std::ops::Add;
use std::sync::atomic::AtomicU64;
use tidegate_types::{Seconds, Slo, Tokens};

/// Counters of a pool's arrivals; monotonic.
#[derive(Debug, Default)]
pub struct ArrivalCounters<W = AtomicU64> {
    requests: W,
    prefill_nanos: W,
    prompt_tokens: W,
    output_tokens: W,
    /// Two's complement; see [`ArrivalTotals`].
    ttft_excess_nanos: W,
    tpot_excess_nanos: W,
}

/// A reading of [`ArrivalCounters`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ArrivalTotals {
    /// Arrived requests.
    pub requests: u64,
    /// Their predicted prefill work.
    pub prefill: Seconds,
    /// Their prompt tokens.
    pub prompt: Tokens,
    /// Their expected output tokens.
    pub output: Tokens,
    /// Sum of their TTFT targets less the default target each; differences of two readings wrap.
    pub ttft_excess_nanos: i64,
    /// The same of their TPOT targets, times their expected output tokens.
    pub tpot_excess_nanos: i64,
}

impl Add for ArrivalTotals {
    type Output = ArrivalTotals;

    fn add(self, other: ArrivalTotals) -> ArrivalTotals {
        ArrivalTotals {
            requests: self.requests + other.requests,
            prefill: self.prefill + other.prefill,
            prompt: self.prompt + other.prompt,
            output: self.output + other.output,
            ttft_excess_nanos: self.ttft_excess_nanos.wrapping_add(other.ttft_excess_nanos),
            tpot_excess_nanos: self.tpot_excess_nanos.wrapping_add(other.tpot_excess_nanos),
        }
    }
}

impl<W: SharedU64> ArrivalCounters<W> {
    /// Counts a request: its predicted prefill work, its prompt and its expected output.
    pub fn count(&self, prefill: Seconds, prompt: Tokens, output: Tokens) {
        self.requests.fetch_add(1);
        self.prefill_nanos.fetch_add((prefill.get() * 1e9) as u64);
        self.prompt_tokens.fetch_add(prompt.get());
        self.output_tokens.fetch_add(output.get());
    }

    /// Counts the targets of a request with this expected output, where they differ from `default`.
    pub fn count_targets(&self, targets: &Slo, default: &Slo, output: Tokens) {
        let excess = |own: Seconds, default: Seconds| ((own - default).get() * 1e9).round() as i64;
        let ttft = excess(targets.ttft, default.ttft);
        let tpot = excess(targets.tpot, default.tpot).wrapping_mul(output.get() as i64);
        self.ttft_excess_nanos.fetch_add(ttft as u64);
        self.tpot_excess_nanos.fetch_add(tpot as u64);
    }

    /// Counts several requests at once, as another gateway reports them: with the default targets.
    pub fn count_all(&self, arrived: &ArrivalTotals) {
        self.requests.fetch_add(arrived.requests);
        self.prefill_nanos.fetch_add((arrived.prefill.get() * 1e9) as u64);
        self.prompt_tokens.fetch_add(arrived.prompt.get());
        self.output_tokens.fetch_add(arrived.output.get());
    }

    /// Returns all counters.
    pub fn totals(&self) -> ArrivalTotals {
        ArrivalTotals {
            requests: self.requests.load_relaxed(),
            prefill: Seconds(self.prefill_nanos.load_relaxed() as f64 / 1e9),
            prompt: Tokens(self.prompt_tokens.load_relaxed()),
            output: Tokens(self.output_tokens.load_relaxed()),
            ttft_excess_nanos: self.ttft_excess_nanos.load_relaxed() as i64,
            tpot_excess_nanos: self.tpot_excess_nanos.load_relaxed() as i64,
        }
    }
}

impl GroupDemand {
    /// Adds the group's share (0 to 1) of the arrivals of a pool between two readings, without
    /// rounding: with a plan every few milliseconds most counts are 0 or 1, and shares below 0.5
    /// would round to 0.
    pub fn add(&mut self, before: &ArrivalTotals, now: &ArrivalTotals, share: f64) {
        let arrived = |now: Tokens, before: Tokens| (now - before).as_f64() * share;
        let prompt = arrived(now.prompt, before.prompt);
        let output = arrived(now.output, before.output);
        self.arrived_requests += (now.requests - before.requests) as f64 * share;
        self.arrived_prefill += (now.prefill - before.prefill) * share;
        self.arrived_output += output;
        self.arrived_kv += prompt + output / 2.0;
        let excess = |now: i64, before: i64| now.wrapping_sub(before) as f64 / 1e9 * share;
        self.ttft_excess += excess(now.ttft_excess_nanos, before.ttft_excess_nanos);
        self.tpot_excess += excess(now.tpot_excess_nanos, before.tpot_excess_nanos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_types::GroupId;

    #[test]
    fn a_share_of_single_arrivals_is_counted_exactly() {
        for share in [0.5, 1.0 / 3.0, 0.25, 0.75, 1.0] {
            let mut demand = GroupDemand::none(GroupId(0));
            let arrivals: ArrivalCounters = ArrivalCounters::default();
            let mut before = arrivals.totals();
            for _ in 0..1200 {
                arrivals.count(Seconds(0.1), Tokens(1000), Tokens(1));
                let now = arrivals.totals();
                demand.add(&before, &now, share);
                before = now;
            }
            let near = |value: f64, whole: f64| (value - whole * share).abs() < 1e-6 * whole;
            assert!(near(demand.arrived_requests, 1200.0), "{share} {demand:?}");
            assert!(near(demand.arrived_prefill.get(), 120.0), "{share} {demand:?}");
            assert!(near(demand.arrived_output, 1200.0), "{share} {demand:?}");
            assert!(near(demand.arrived_kv, 1200.0 * 1000.5), "{share} {demand:?}");
        }
    }
}
