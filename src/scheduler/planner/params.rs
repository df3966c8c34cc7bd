//! Parameters of the planner.

use serde::{Deserialize, Serialize};
use tidegate_types::{Seconds, Slo, Tokens};

/// The planner's parameters; see each field for unit and default.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Params {
    /// The TTFT and TPOT targets.
    pub slo: Slo,
    /// Shortest time between two flips of one backend. Other backends of the group may flip in the
    /// opposite direction at any time; the switching cost limits that (decision 0014). Default 5 s:
    /// the streams left on a flipped engine last about that long, and a flip pays only if the shift
    /// in demand outlasts them.
    pub dwell: Seconds,
    /// Time constant of the demand average. Default 10 s: a few hundred requests of a busy group.
    pub demand_window: Seconds,
    /// Share of a decode engine's streams within the TPOT target that the planner counts as its
    /// capacity; the rest is headroom for prefill chunks and noise. Default 0.9.
    pub filling: f64,
    /// The engines' `max_num_batched_tokens`: a prefill chunk of this size stalls the streams of
    /// its engine. Default 2,048.
    pub chunk: Tokens,
    /// Share of a decode engine's idle time that short prefills are expected to use. 0 to 1, default
    /// 0.3; 0 if placement may not spill. Engines that run no whole requests have no such share.
    pub spill: f64,
    /// Duration of an engine's own role switch once it is idle (`DrainThenCall`). Default 5 s:
    /// queues and pools are rebuilt, and decode graphs are captured the first time.
    pub switch: Seconds,
    /// Time constant of the regret against other splits. Default 10 minutes.
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
