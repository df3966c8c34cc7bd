//! Demand average: rates by exponentially weighted moving averages over irregular intervals. Counts
//! and elapsed time decay alike; a rate is their quotient. The elapsed time is at least one TTFT
//! target, so that a burst in the first milliseconds does not give a high rate.

use serde::{Deserialize, Serialize};
use tidegate_types::Seconds;

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

    fn per_second(&self, sum: f64) -> f64 {
        if self.seconds > 0.0 { sum / self.seconds } else { 0.0 }
    }
}
