//! What the planner gets to see: every backend now, and each group's demand since the last look.

use serde::{Deserialize, Serialize};
use tidegate_cost::{DecodeModel, PrefillModel};
use tidegate_terms::{BackendId, GroupId, Role, RoleCapability, RoleSet, Seconds, Tokens};

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
}

/// One group's demand.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupDemand {
    /// Whose.
    pub group: GroupId,
    /// Requests that arrived since the last observation.
    pub arrived_requests: u64,
    /// Their predicted prefill work, in seconds of one engine.
    pub arrived_prefill: Seconds,
    /// Their expected output.
    pub arrived_output: Tokens,
    /// Mean KV tokens of a stream, over what has arrived so far; 0 if nothing has.
    pub mean_kv: Tokens,
    /// Requests that wait for a place now.
    pub waiting_requests: u32,
    /// Their predicted prefill work.
    pub waiting_prefill: Seconds,
    /// Prefilled requests that wait for a decode backend now.
    pub waiting_decodes: u32,
}

/// The fleet at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// By slot.
    pub backends: Vec<BackendObservation>,
    /// By group; a group that is not named has no demand.
    pub groups: Vec<GroupDemand>,
}
