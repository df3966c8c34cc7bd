//! What the operator may set.

use serde::{Deserialize, Serialize};
use tidegate_terms::{Seconds, Slo};

/// The planner's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Params {
    /// What clients were promised.
    pub slo: Slo,
    /// Shortest time between two flips of one backend, and between two flips of a group in opposite
    /// directions. Default 5 s: the streams left behind on a flipped engine last about that long, and
    /// a flip pays only if the shift outlasts them.
    pub dwell: Seconds,
    /// By how many engines, beyond the half that rounding needs, a pool must be wrong before one
    /// moves. Default 0.25.
    pub margin: f64,
    /// Time constant of the demand average. Default 10 s: some hundred requests of a busy group.
    pub demand_window: Seconds,
    /// Share of the TPOT target that a decode engine is planned for; the rest absorbs the prefill
    /// chunks and the noise it meets. Default 0.9.
    pub tpot_share: f64,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            slo: Slo::default(),
            dwell: Seconds(5.0),
            margin: 0.25,
            demand_window: Seconds(10.0),
            tpot_share: 0.9,
        }
    }
}
