//! Demand average: rates by exponentially weighted moving averages over irregular intervals. Counts
//! and elapsed time decay alike; a rate is their quotient. The elapsed time is at least one TTFT
//! target, so that a burst in the first milliseconds does not give a high rate.

use serde::{Deserialize, Serialize};
use tidegate_types::{Seconds, Slo};

use crate::planner::observation::GroupDemand;

/// Exponentially decayed sums of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DemandAverage {
    /// At least one TTFT target.
    seconds: f64,
    requests: f64,
    prefill: f64,
    output: f64,
    #[serde(default)]
    kv: f64,
    #[serde(default)]
    ttft_excess: f64,
    #[serde(default)]
    tpot_excess: f64,
}

impl DemandAverage {
    /// Returns the average after a further `elapsed` in which `demand` arrived. Rates are averaged
    /// over at least `ttft`.
    #[must_use]
    pub fn after(
        self,
        elapsed: Seconds,
        demand: &GroupDemand,
        window: Seconds,
        ttft: Seconds,
    ) -> DemandAverage {
        if elapsed <= Seconds::ZERO {
            // First run: the interval in which this demand arrived is unknown.
            return self;
        }
        let keep = (-elapsed.get() / window.get().max(1e-3)).exp();
        DemandAverage {
            seconds: (self.seconds * keep + elapsed.get()).max(ttft.get()),
            requests: self.requests * keep + demand.arrived_requests,
            prefill: self.prefill * keep + demand.arrived_prefill.get(),
            output: self.output * keep + demand.arrived_output,
            kv: self.kv * keep + demand.arrived_kv,
            ttft_excess: self.ttft_excess * keep + demand.ttft_excess,
            tpot_excess: self.tpot_excess * keep + demand.tpot_excess,
        }
    }

    /// Prefill load: arriving prefill work in engine-seconds per second, which is the number of
    /// engines it keeps busy.
    pub fn prefill_load(&self) -> f64 {
        self.per_second(self.prefill)
    }

    /// Expected output tokens per second of the arriving requests.
    pub fn output_rate(&self) -> f64 {
        self.per_second(self.output)
    }

    /// Arrival rate in requests per second.
    pub fn request_rate(&self) -> f64 {
        self.per_second(self.requests)
    }

    /// Mean prefill work of a request, in engine-seconds; 0 before the first request.
    pub fn mean_work(&self) -> f64 {
        if self.requests > 0.0 { self.prefill / self.requests } else { 0.0 }
    }

    /// Mean output tokens of a request; 0 before the first request.
    pub fn mean_output(&self) -> f64 {
        if self.requests > 0.0 { self.output / self.requests } else { 0.0 }
    }

    /// Mean KV tokens of a stream, over the demand window; `None` before the first request.
    pub fn mean_kv(&self) -> Option<f64> {
        (self.requests > 0.0 && self.kv > 0.0).then(|| self.kv / self.requests)
    }

    /// Returns the mean targets of the demand: TTFT by request, TPOT by expected output token. Without
    /// service classes they equal `default`.
    pub fn targets(&self, default: &Slo) -> Slo {
        let mean = |sum: f64, count: f64| Seconds(if count > 0.0 { sum / count } else { 0.0 });
        Slo {
            ttft: default.ttft + mean(self.ttft_excess, self.requests),
            tpot: default.tpot + mean(self.tpot_excess, self.output),
            itl: default.itl,
        }
    }

    fn per_second(&self, sum: f64) -> f64 {
        if self.seconds > 0.0 { sum / self.seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::{ArrivalCounters, Params};
    use tidegate_types::{GroupId, Tokens};

    const WINDOW: Seconds = Seconds(10.0);

    #[test]
    fn demand_without_classes_has_exactly_the_default_targets() {
        let default = Slo { ttft: Seconds(1.0 / 3.0), tpot: Seconds(0.0299), itl: None };
        let mut average = DemandAverage::default();
        for n in 0..50 {
            let arrivals: ArrivalCounters = ArrivalCounters::default();
            arrivals.count(Seconds(0.1), Tokens(1000 + n), Tokens(300));
            let mut demand = GroupDemand::none(GroupId(0));
            demand.add(&Default::default(), &arrivals.totals(), 1.0 / 3.0);
            average = average.after(Seconds(0.3), &demand, WINDOW, default.ttft);
            assert_eq!(average.targets(&default), default);
        }
    }

    #[test]
    fn the_targets_of_demand_are_means_over_requests_and_output_tokens() {
        let default = Slo::default();
        let tight = Slo { ttft: Seconds(0.2), tpot: Seconds(0.02), itl: None };
        let lax = Slo { ttft: Seconds(4.0), tpot: Seconds(0.1), itl: None };
        let arrivals: ArrivalCounters = ArrivalCounters::default();
        for (targets, output, count) in [(default, 100, 1), (tight, 300, 2), (lax, 100, 1)] {
            for _ in 0..count {
                arrivals.count(Seconds(0.1), Tokens(1000), Tokens(output));
                arrivals.count_targets(&targets, &default, Tokens(output));
            }
        }
        let mut demand = GroupDemand::none(GroupId(0));
        demand.add(&Default::default(), &arrivals.totals(), 0.5);
        let average = DemandAverage::default();
        let average = average.after(Seconds(0.1), &demand, WINDOW, default.ttft);
        let params = Params::default().with_targets_of(&average);
        let near = |found: Seconds, expected: f64| (found.get() - expected).abs() < 1e-9;
        assert!(near(params.slo.ttft, (1.0 + 2.0 * 0.2 + 4.0) / 4.0), "{:?}", params.slo);
        let tpot = (0.03 * 100.0 + 0.02 * 600.0 + 0.1 * 100.0) / 800.0;
        assert!(near(params.slo.tpot, tpot), "{:?}", params.slo);
    }
}
