//! Input of the planner: the state of every backend, and the demand of each group since the last
//! run.

use crate::cost::{DecodeModel, PrefillModel};
#[cfg(doc)]
use crate::planner::Params;
use serde::{Deserialize, Serialize};
use tidegate_types::{BackendId, GroupId, Role, RoleCapability, RoleSet, Seconds, Tokens};

/// State of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendObservation {
    /// Its slot. Observations are ordered by slot, without gaps.
    pub id: BackendId,
    /// The compatibility group: backends that may hand KV cache to each other.
    pub group: GroupId,
    /// The roles its launch flags allow.
    pub allowed: RoleSet,
    /// How its role can be changed.
    pub capability: RoleCapability,
    /// The role to which an operator has pinned it.
    pub pinned: Option<Role>,
    /// Whether new work may be sent to the backend.
    #[serde(rename = "usable")]
    pub healthy: bool,
    /// Its role in the plan in force.
    pub role: Role,
    /// The role that the backend will have once it has drained and switched (`DrainThenCall`);
    /// until then it receives no work.
    #[serde(default)]
    pub becoming: Option<Role>,
    /// Prefill backlog: predicted prefill work in flight.
    pub prefill: Seconds,
    /// Decode streams in flight.
    pub streams: u32,
    /// Most concurrent streams.
    pub streams_max: u32,
    /// KV tokens of those streams.
    pub kv: Tokens,
    /// KV tokens that fit into memory; 0 if unknown.
    pub kv_capacity: Tokens,
    /// Cost model of a prefill on this backend.
    pub prefill_model: PrefillModel,
    /// Cost model of a decode step on this backend.
    pub decode_model: DecodeModel,
    /// Whether the backend serves colocated requests in its present role. SGLang's disaggregated
    /// engines do not, so that no prefill spills to them.
    #[serde(default = "yes", rename = "runs_colocated", alias = "runs_whole")]
    pub colocates: bool,
}

/// Default for recordings of earlier versions, which lack the field.
fn yes() -> bool {
    true
}

/// Demand of one group. Counts are fractional: a group's demand is its share of its pool's, and
/// with a plan every 2 to 5 ms most counts are below 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupDemand {
    /// The group.
    pub group: GroupId,
    /// Requests that arrived since the last observation.
    pub arrived_requests: f64,
    /// Their predicted prefill work, in engine-seconds.
    pub arrived_prefill: Seconds,
    /// Their expected output tokens.
    pub arrived_output: f64,
    /// Sum over the requests of the mean KV tokens of the stream: prompt and half of the output.
    #[serde(default)]
    pub arrived_kv: f64,
    /// Sum over the requests of their TTFT target less that of [`Params`], in seconds.
    #[serde(default)]
    pub ttft_excess: f64,
    /// The same of their TPOT targets, times their expected output tokens.
    #[serde(default)]
    pub tpot_excess: f64,
}

impl GroupDemand {
    /// Returns zero demand for a group.
    pub fn none(group: GroupId) -> GroupDemand {
        GroupDemand {
            group,
            arrived_requests: 0.0,
            arrived_prefill: Seconds::ZERO,
            arrived_output: 0.0,
            arrived_kv: 0.0,
            ttft_excess: 0.0,
            tpot_excess: 0.0,
        }
    }
}

/// State of the fleet at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Backends by slot.
    pub backends: Vec<BackendObservation>,
    /// Demand by group; a group that is missing has no demand.
    pub groups: Vec<GroupDemand>,
}
