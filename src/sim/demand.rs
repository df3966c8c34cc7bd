//! Arriving work, counted as in the proxy's `demand.rs` and `control/observe.rs`.

use tidegate_scheduler::planner::GroupDemand;
use tidegate_types::{GroupId, Seconds, Tokens};

/// Demand of the single group.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Demand {
    requests: f64,
    prefill: Seconds,
    output: f64,
    kv: f64,
}

impl Demand {
    pub(crate) fn arrived(&mut self, prefill: Seconds, prompt: Tokens, output: Tokens) {
        self.requests += 1.0;
        self.prefill += prefill;
        self.output += output.as_f64();
        self.kv += prompt.as_f64() + output.as_f64() / 2.0;
    }

    /// Returns what arrived since the last call.
    pub(crate) fn since_last(&mut self) -> GroupDemand {
        let demand = GroupDemand {
            group: GroupId(0),
            arrived_requests: self.requests,
            arrived_prefill: self.prefill,
            arrived_output: self.output,
            arrived_kv: self.kv,
        };
        (self.requests, self.prefill, self.output, self.kv) = (0.0, Seconds::ZERO, 0.0, 0.0);
        demand
    }
}
