//! What the planner gets to see: every backend now, and each group's demand since the last look.

use crate::cost::{DecodeModel, PrefillModel};
use serde::{Deserialize, Serialize};
use tidegate_types::{BackendId, GroupId, Role, RoleCapability, RoleSet, Seconds, Tokens};

/// One backend.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackendObservation {
    /// Its slot; observations come in the order of slots, without gaps.
    pub id: BackendId,
    /// Whom it may hand KV cache to.
    pub group: GroupId,
    /// The roles its launch flags allow.
    pub allowed: RoleSet,
    /// Who may change its role.
    pub capability: RoleCapability,
    /// The role an operator fixed.
    pub pinned: Option<Role>,
    /// May new work go there?
    pub usable: bool,
    /// Its role in the plan in force.
    pub role: Role,
    /// The role that it is about to have, while it drains and switches (`DrainThenCall`): until then
    /// it takes nothing.
    #[serde(default)]
    pub becoming: Option<Role>,
    /// Predicted prefill work sent and unfinished.
    pub prefill: Seconds,
    /// Streams that decode there.
    pub streams: u32,
    /// Most streams at once.
    pub streams_max: u32,
    /// KV tokens of those streams.
    pub kv: Tokens,
    /// KV tokens that fit.
    pub kv_capacity: Tokens,
    /// What a prefill costs there.
    pub prefill_model: PrefillModel,
    /// What a decode step costs there.
    pub decode_model: DecodeModel,
    /// Does it run whole requests (prefill and decode) in its present role? SGLang's disaggregated
    /// engines do not, so no prefill uses the idle time of a decode engine there.
    #[serde(default = "yes")]
    pub runs_whole: bool,
}

/// Recordings of earlier versions do not have the field.
fn yes() -> bool {
    true
}

/// One group's demand. Counts are fractional: a group's demand is its share of its pool's, and at a
/// plan every 2 to 5 ms most counts are below 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupDemand {
    /// Whose.
    pub group: GroupId,
    /// Requests that arrived since the last observation.
    pub arrived_requests: f64,
    /// Their predicted prefill work, in seconds of one engine.
    pub arrived_prefill: Seconds,
    /// Their expected output tokens.
    pub arrived_output: f64,
    /// Sum of the mean KV tokens of each one's stream: its prompt and half of its output.
    #[serde(default)]
    pub arrived_kv: f64,
}

impl GroupDemand {
    /// No demand.
    pub fn none(group: GroupId) -> GroupDemand {
        GroupDemand {
            group,
            arrived_requests: 0.0,
            arrived_prefill: Seconds::ZERO,
            arrived_output: 0.0,
            arrived_kv: 0.0,
        }
    }
}

/// The fleet at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// By slot.
    pub backends: Vec<BackendObservation>,
    /// By group; a group that is not named has no demand.
    pub groups: Vec<GroupDemand>,
}
