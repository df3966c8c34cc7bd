//! Parameters of the planner: the targets and what an operator may set. Constants are in
//! [`tuning`](crate::tuning).

use crate::planner::demand::DemandAverage;
use crate::tuning::{DEMAND_WINDOW, SWITCH};
use serde::{Deserialize, Deserializer, Serialize};
use tidegate_types::{Seconds, Slo, Tokens};

/// The planner's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Params {
    /// The TTFT and TPOT targets of requests without a service class.
    pub slo: Slo,
    /// Time constant of the demand average. Default [`DEMAND_WINDOW`].
    pub demand_window: Seconds,
    /// The engines' `max_num_batched_tokens`: a prefill chunk of this size stalls the streams of
    /// its engine. Default 2,048.
    pub chunk: Tokens,
    /// Whether placement lets decode engines prefill beside their streams. Default true. Recordings
    /// of earlier versions have a share instead: 0 is false.
    #[serde(deserialize_with = "flag_or_share")]
    pub spill: bool,
    /// Duration of an engine's own role switch once it is idle (`DrainThenCall`). Default
    /// [`SWITCH`].
    pub switch: Seconds,
}

impl Params {
    /// Returns the parameters with the mean targets of a group's demand.
    pub(super) fn with_targets_of(&self, demand: &DemandAverage) -> Params {
        Params { slo: demand.targets(&self.slo), ..*self }
    }
}

impl Default for Params {
    fn default() -> Params {
        Params {
            slo: Slo::default(),
            demand_window: DEMAND_WINDOW,
            chunk: Tokens(2048),
            spill: true,
            switch: SWITCH,
        }
    }
}

fn flag_or_share<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Flag(bool),
        Share(f64),
    }
    Ok(match Either::deserialize(from)? {
        Either::Flag(flag) => flag,
        Either::Share(share) => share > 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_earlier_recordings_are_read() {
        let params = Params { spill: false, ..Params::default() };
        let mut written = serde_json::to_value(params).unwrap();
        assert_eq!(serde_json::from_value::<Params>(written.clone()).unwrap(), params);
        for (share, flag) in [(0.0, false), (0.3, true)] {
            written["spill"] = share.into();
            (written["filling"], written["dwell"]) = (0.9.into(), 5.0.into());
            let read: Params = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(read, Params { spill: flag, ..params });
        }
    }
}
