//! Rates from counts: an exponentially weighted mean over irregular intervals that is right from
//! the first sample on. Both the counts and the time they took fade; the rate is their quotient.

use serde::{Deserialize, Serialize};
use tidegate_types::Seconds;

use crate::planner::observation::GroupDemand;

/// What arrived in less than this is taken to be a second's, in seconds.
const LEAST: f64 = 1.0;

/// Faded sums of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DemandAverage {
    seconds: f64,
    requests: f64,
    prefill: f64,
    output: f64,
    #[serde(default)]
    kv: f64,
}

impl DemandAverage {
    /// This average after `elapsed` more, in which `demand` arrived.
    #[must_use]
    pub fn after(self, elapsed: Seconds, demand: &GroupDemand, window: Seconds) -> DemandAverage {
        if elapsed <= Seconds::ZERO {
            // The first look: what arrived before it took an unknown time.
            return self;
        }
        let keep = (-elapsed.get() / window.get().max(1e-3)).exp();
        DemandAverage {
            seconds: self.seconds * keep + elapsed.get(),
            requests: self.requests * keep + demand.arrived_requests,
            prefill: self.prefill * keep + demand.arrived_prefill.get(),
            output: self.output * keep + demand.arrived_output,
            kv: self.kv * keep + demand.arrived_kv,
        }
    }

    /// Engines that the arriving prefill work keeps busy: engine-seconds a second.
    pub fn prefill_load(&self) -> f64 {
        self.per_second(self.prefill)
    }

    /// Output tokens a second that the arriving requests will emit.
    pub fn output_rate(&self) -> f64 {
        self.per_second(self.output)
    }

    /// Requests a second.
    pub fn request_rate(&self) -> f64 {
        self.per_second(self.requests)
    }

    /// Prefill work of a mean request, in engine-seconds; 0 before any came.
    pub fn mean_work(&self) -> f64 {
        if self.requests > 0.0 { self.prefill / self.requests } else { 0.0 }
    }

    /// Output tokens of a mean request; 0 before any came.
    pub fn mean_output(&self) -> f64 {
        if self.requests > 0.0 { self.output / self.requests } else { 0.0 }
    }

    /// KV tokens of a mean stream; `None` before any request came. It is forgotten like the rates: a
    /// planner that went on with the prompts of an hour ago would size decode memory for them.
    pub fn mean_kv(&self) -> Option<f64> {
        (self.requests > 0.0 && self.kv > 0.0).then(|| self.kv / self.requests)
    }

    fn per_second(&self, sum: f64) -> f64 {
        // A burst in the first moments is no rate.
        sum / self.seconds.max(LEAST)
    }
}
