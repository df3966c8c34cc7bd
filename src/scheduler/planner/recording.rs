//! What the planner saw and decided, as lines of a recording, and the same again from the lines. It must
//! never decide anything itself: a replay that differs from its recording is a bug, or another
//! version's planner.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use tidegate_types::{BackendId, Moment, Role};

use crate::planner::decide::plan;
use crate::planner::observation::Observation;
use crate::planner::params::Params;
use crate::planner::state::State;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line<'a> {
    /// It begins with nothing learned.
    Begins(Cow<'a, Params>),
    /// It planned.
    Planned {
        /// When.
        at: Moment,
        /// What it saw.
        seen: Cow<'a, Observation>,
        /// Whose roles it changed, and to what.
        flips: Vec<(BackendId, Role)>,
    },
    /// A role changed otherwise: by hand, or at the end of a switch.
    Flipped {
        /// When.
        at: Moment,
        /// Whose.
        backend: BackendId,
    },
}

/// A replay that came to another decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Differs {
    /// When.
    pub at: Moment,
    /// What was recorded.
    pub recorded: Vec<(BackendId, Role)>,
    /// What the planner decides now.
    pub replayed: Vec<(BackendId, Role)>,
}

/// What a replay came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Plans made.
    pub plans: u64,
    /// Roles they changed.
    pub flips: u64,
}

/// Make every plan of a recording again.
///
/// # Errors
/// The first plan that differs.
pub fn replay<'a>(lines: impl IntoIterator<Item = Line<'a>>) -> Result<Replayed, Differs> {
    let (mut params, mut state) = (Params::default(), State::default());
    let mut replayed = Replayed::default();
    for line in lines {
        match line {
            Line::Begins(with) => (params, state) = (*with, State::default()),
            Line::Flipped { at, backend } => state.flipped(backend, at),
            Line::Planned { at, seen, flips: recorded } => {
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
