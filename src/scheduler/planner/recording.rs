//! Recording of the planner's inputs and decisions as JSON lines, and the replay of a recording. A
//! replay differs from its recording only after a change of the planner's code, or because of a bug.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use tidegate_types::{BackendId, Moment, Role};

use crate::planner::decide::plan;
use crate::planner::observation::Observation;
use crate::planner::params::Params;
use crate::planner::state::State;

/// One record, which is one line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanRecord<'a> {
    /// Start with an empty state and these parameters.
    Begins(Cow<'a, Params>),
    /// A run of the planner.
    Planned {
        /// The time.
        at: Moment,
        /// The input.
        seen: Cow<'a, Observation>,
        /// The decided flips: backends and their new roles.
        flips: Vec<(BackendId, Role)>,
    },
    /// Other parameters from here on; the state stays.
    Revised(Cow<'a, Params>),
    /// A role change other than by a plan: by an operator, or at the end of a switch.
    Flipped {
        /// The time.
        at: Moment,
        /// The backend.
        backend: BackendId,
    },
}

/// A plan whose replay gives another decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Differs {
    /// The time.
    pub at: Moment,
    /// The recorded flips.
    pub recorded: Vec<(BackendId, Role)>,
    /// The flips in the replay.
    pub replayed: Vec<(BackendId, Role)>,
}

/// Summary of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Number of plans.
    pub plans: u64,
    /// Number of flips.
    pub flips: u64,
}

/// Repeats every plan of a recording.
///
/// # Errors
/// [`Differs`] for the first plan whose flips differ.
pub fn replay<'a>(lines: impl IntoIterator<Item = PlanRecord<'a>>) -> Result<Replayed, Differs> {
    let (mut params, mut state) = (Params::default(), State::default());
    let mut replayed = Replayed::default();
    for line in lines {
        match line {
            PlanRecord::Begins(with) => (params, state) = (*with, State::default()),
            PlanRecord::Revised(with) => params = *with,
            PlanRecord::Flipped { backend, .. } => state.flipped(backend),
            PlanRecord::Planned { at, seen, flips: recorded } => {
                let (decision, next) = plan(&params, at, &seen, &state);
                state = next;
                let flips = decision.flips();
                replayed.plans += 1;
                replayed.flips += flips.len() as u64;
                if flips != recorded {
                    return Err(Differs { at, recorded, replayed: flips });
                }
            }
        }
    }
    Ok(replayed)
}
