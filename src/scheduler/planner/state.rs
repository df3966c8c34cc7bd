//! State of the planner between two runs: a value that the caller keeps and passes back.

use serde::{Deserialize, Serialize};
use tidegate_types::{BackendId, Moment};

use crate::planner::counterfactual::CounterfactualModel;
use crate::planner::demand::DemandAverage;

/// The planner's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Time of the last run.
    pub(super) at: Option<Moment>,
    /// By group.
    pub(super) groups: Vec<GroupState>,
    /// Backends whose role something other than a plan has changed since the last run.
    pub(super) moved: Vec<BackendId>,
}

/// State of one group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct GroupState {
    pub(super) demand: DemandAverage,
    pub(super) counterfactual: CounterfactualModel,
}

impl State {
    /// Records a role change that no plan made: by an operator, or at the end of an engine's own
    /// switch. The planner continues from the new split.
    pub fn flipped(&mut self, backend: BackendId) {
        self.moved.push(backend);
    }

    pub(super) fn grow_to(&mut self, groups: usize) {
        if self.groups.len() < groups {
            self.groups.resize(groups, GroupState::default());
        }
    }
}
