//! Outlook, for operators: the counterfactual losses of every split, and the demand from which they
//! are computed. Reading it changes no state.

use serde::Serialize;
use tidegate_types::{GroupId, Seconds, Slo};

use crate::planner::demand::DemandAverage;
use crate::planner::engines_wanted::EnginesWanted;
use crate::planner::state::State;

/// One split in the counterfactual model of its group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SplitOutlook {
    /// Prefill engines of the split.
    pub prefill_engines: usize,
    /// Requests that it would have lost, decayed with the time constant
    /// [`REGRET_MEMORY`](crate::tuning::REGRET_MEMORY).
    pub lost_requests: f64,
    /// Regret: loss of the advised split minus the loss of this split, accumulated since this split
    /// was last worse.
    pub regret_requests: f64,
    /// Switching cost: requests lost by a switch to this split. The group switches when the regret
    /// reaches it.
    pub switch_cost_requests: f64,
}

/// The planner's view of one group.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupOutlook {
    /// The group.
    pub group: GroupId,
    /// Engines that may take either role and are healthy.
    pub engines: usize,
    /// Prefill engines of the advised split.
    pub prefill_engines: usize,
    /// Arrivals per second, mean over the demand window.
    pub request_rate: f64,
    /// Engines that the arriving prefill work keeps busy.
    pub prefill_load_engines: f64,
    /// Expected output tokens per second of the arriving requests.
    pub output_rate: f64,
    /// Expected streams in steady state at this rate (Little's law at the TPOT target).
    pub expected_streams: f64,
    /// Mean output tokens of a request.
    pub mean_output_tokens: f64,
    /// Mean prefill work of a request.
    pub mean_prefill_seconds: Seconds,
    /// Fewest engines that would have lost no request over the last 150 to 300 s; `None` before the
    /// first second and without healthy engines.
    pub engines_wanted: Option<usize>,
    /// Every split, from one prefill engine up; empty for a group without two engines that can flip.
    pub splits: Vec<SplitOutlook>,
}

impl State {
    /// Returns the outlook of every group.
    pub fn outlook(&self, slo: &Slo, wanted: &EnginesWanted) -> Vec<GroupOutlook> {
        let group = |(slot, group): (usize, &crate::planner::state::GroupState)| {
            let demand: &DemandAverage = &group.demand;
            let splits = group.counterfactual.outlook();
            GroupOutlook {
                group: GroupId(slot as u16),
                engines: if splits.is_empty() { 0 } else { splits.len() + 1 },
                prefill_engines: group.counterfactual.advised(),
                request_rate: demand.request_rate(),
                prefill_load_engines: demand.prefill_load(),
                output_rate: demand.output_rate(),
                expected_streams: demand.output_rate() * demand.targets(slo).tpot.get(),
                mean_output_tokens: demand.mean_output(),
                mean_prefill_seconds: Seconds(demand.mean_work()),
                engines_wanted: wanted.of(GroupId(slot as u16)),
                splits,
            }
        };
        self.groups.iter().enumerate().map(group).collect()
    }
}
