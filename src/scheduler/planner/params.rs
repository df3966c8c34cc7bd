//! What the operator may set.

use serde::{Deserialize, Serialize};
use tidegate_types::{Seconds, Slo, Tokens};

/// The planner's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Params {
    /// What clients were promised.
    pub slo: Slo,
    /// Shortest time between two flips of one backend. A group may flip other backends the other way at
    /// any time; what limits that is the cost of moves (decision 0014). Default 5 s: the streams left
    /// behind on a flipped engine last about that long, and a flip pays only if the shift outlasts
    /// them.
    pub dwell: Seconds,
    /// Time constant of the demand average. Default 10 s: some hundred requests of a busy group.
    pub demand_window: Seconds,
    /// Share of the streams that a decode engine carries within the TPOT target that it is planned
    /// for; the rest absorbs the prefill chunks and the noise it meets. Default 0.9.
    pub filling: f64,
    /// The engines' `max_num_batched_tokens`: by so much a prefill chunk holds up the streams on its
    /// engine. Default 2,048.
    pub chunk: Tokens,
    /// Share of a decode engine's idle time that short prefills are expected to use. 0 to 1, default
    /// 0.3; 0 if placement may not spill. Engines that run no whole requests have no such share.
    pub spill: f64,
    /// What an engine's own role switch takes once it is idle (`DrainThenCall`). Default 5 s: queues
    /// and pools are rebuilt, and decode graphs captured the first time.
    pub switch: Seconds,
    /// How long what other splits would have cost is remembered. Default 10 minutes.
    pub memory: Seconds,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            slo: Slo::default(),
            dwell: Seconds(5.0),
            demand_window: Seconds(10.0),
            filling: 0.9,
            chunk: Tokens(2048),
            spill: 0.3,
            switch: Seconds(5.0),
            memory: Seconds(600.0),
        }
    }
}
