//! What arrives and what waits, as the proxy's demand.rs and control/observe.rs count it.

use tidegate_planner::GroupDemand;
use tidegate_terms::{GroupId, Seconds, Tokens};

/// The demand of the one group.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Demand {
    requests: u64,
    prefill: Seconds,
    output: Tokens,
    /// Over all arrivals so far.
    requests_ever: u64,
    kv_ever: f64,
    waiting_requests: u32,
    waiting_prefill: Seconds,
    waiting_decodes: u32,
}

impl Demand {
    pub(crate) fn arrived(&mut self, prefill: Seconds, prompt: Tokens, output: Tokens) {
        self.requests += 1;
        self.prefill += prefill;
        self.output += output;
        self.requests_ever += 1;
        self.kv_ever += prompt.as_f64() + output.as_f64() / 2.0;
    }

    pub(crate) fn waits(&mut self, requests: usize, prefill: Seconds, decodes: usize) {
        self.waiting_requests = requests as u32;
        self.waiting_prefill = prefill;
        self.waiting_decodes = decodes as u32;
    }

    /// What arrived since the last call, and what waits now.
    pub(crate) fn since_last(&mut self) -> GroupDemand {
        let mean_kv = self.kv_ever / self.requests_ever.max(1) as f64;
        let demand = GroupDemand {
            group: GroupId(0),
            arrived_requests: self.requests,
            arrived_prefill: self.prefill,
            arrived_output: self.output,
            mean_kv: Tokens(mean_kv as u64),
            waiting_requests: self.waiting_requests,
            waiting_prefill: self.waiting_prefill,
            waiting_decodes: self.waiting_decodes,
        };
        (self.requests, self.prefill, self.output) = (0, Seconds::ZERO, Tokens::ZERO);
        demand
    }
}
