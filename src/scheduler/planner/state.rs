//! What the planner remembers between two runs. A value: the caller keeps it and hands it back.

use serde::{Deserialize, Serialize};
use tidegate_types::{BackendId, Moment};

use crate::planner::demand::DemandAverage;
use crate::planner::shadow::Shadows;

/// Everything the planner remembers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// When it last ran.
    pub(super) at: Option<Moment>,
    /// By group.
    pub(super) groups: Vec<GroupState>,
    /// By backend: when its role last changed.
    pub(super) flipped_at: Vec<Option<Moment>>,
    /// Whose role changed otherwise than by a plan since the last one.
    pub(super) moved: Vec<BackendId>,
}

/// What it remembers of a group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct GroupState {
    pub(super) demand: DemandAverage,
    pub(super) shadows: Shadows,
}

impl State {
    /// A backend's role changed otherwise than by a plan: an operator's word, or the end of a switch
    /// that the engine made. The planner lets it rest for the dwell, and starts from the new split.
    pub fn flipped(&mut self, backend: BackendId, now: Moment) {
        self.make_room(backend.index() + 1, 0);
        self.flipped_at[backend.index()] = Some(now);
        self.moved.push(backend);
    }

    pub(super) fn make_room(&mut self, backends: usize, groups: usize) {
        if self.flipped_at.len() < backends {
            self.flipped_at.resize(backends, None);
        }
        if self.groups.len() < groups {
            self.groups.resize(groups, GroupState::default());
        }
    }
}
