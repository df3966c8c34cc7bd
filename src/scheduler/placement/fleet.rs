//! The view of the engines that placement uses. The live proxy implements it on atomics, the
//! simulator on plain structs.

use crate::cost::{DecodeModel, Matches, PrefillModel, TransferModel};
use crate::placement::PrefillRequest;
use crate::tuning::HEADROOM;
use tidegate_types::{BackendId, GroupId, PoolId, Role, Seconds, Tokens};

/// State of one backend at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The role: the kind of new work that the backend receives.
    pub role: Role,
    /// Whether requests may be sent to the backend.
    pub usable: bool,
    /// Whether the backend is a suspect (silent, ejected, backing off). A suspect receives new work
    /// only if no other backend is usable.
    pub last: bool,
    /// Whether the backend takes whole requests. If not, every request is split, short ones too.
    pub runs_whole: bool,
    /// Whether the backend may prefill for another backend whatever its role. Some engines crash if
    /// they do so.
    pub hands_over: bool,
    /// Whether its launch flags allow decoding after a hand-off.
    pub takes_over: bool,
    /// The compatibility group: backends that may hand KV cache to each other.
    pub group: GroupId,
    /// Predicted duration of the prefill work in flight, whole requests included, computed as one
    /// batch ([`PrefillModel::batch`]).
    pub prefill: Seconds,
    /// The uncached prompt tokens of that work.
    pub prefill_tokens: Tokens,
    /// Decode streams running or reserved.
    pub streams: u32,
    /// Streams among them without a first token: in hand-off, or behind a prefill.
    pub awaiting_first_token: u32,
    /// Most concurrent streams.
    pub streams_max: u32,
    /// KV tokens of its streams.
    pub kv: Tokens,
    /// KV tokens that fit into memory; 0 if unknown.
    pub kv_capacity: Tokens,
    /// Smallest TPOT slack among the streams with a first token: the longest stall, from now, after
    /// which none of them misses its TPOT. Negative if one is already late; large without such
    /// streams.
    pub slack: Seconds,
    /// Cost model of a prefill on this backend.
    pub prefill_model: PrefillModel,
    /// Cost model of a decode step on this backend.
    pub decode_model: DecodeModel,
    /// Cost model of a hand-off within the backend's group.
    pub transfer_model: TransferModel,
}

/// The state of all engines at one moment.
pub trait Fleet {
    /// Every backend of a pool, usable or not.
    fn pool(&self, pool: PoolId) -> &[BackendId];
    /// One backend's load, reservations included.
    fn load(&self, backend: BackendId) -> Load;
    /// Tokens of a job's prompt that a backend has cached; less than the prompt.
    fn cached(&self, job: &PrefillRequest, backend: BackendId) -> Tokens;
    /// The backends that hold the longest prefixes of a job's prompt. Called only for pools larger
    /// than the sample, which would miss those backends; with the default implementation, locality
    /// is lost in such pools.
    fn holders(&self, _job: &PrefillRequest) -> Matches {
        Matches::default()
    }
}

impl Load {
    /// An idle, usable backend of group 0 with default costs, that may run every kind of leg.
    pub fn idle(role: Role) -> Load {
        Load {
            role,
            usable: true,
            last: false,
            runs_whole: true,
            hands_over: true,
            takes_over: true,
            group: GroupId(0),
            prefill: Seconds::ZERO,
            prefill_tokens: Tokens::ZERO,
            streams: 0,
            awaiting_first_token: 0,
            streams_max: u32::MAX,
            kv: Tokens::ZERO,
            kv_capacity: Tokens::ZERO,
            slack: Seconds(f64::INFINITY),
            prefill_model: PrefillModel::default(),
            decode_model: DecodeModel::default(),
            transfer_model: TransferModel::default(),
        }
    }

    /// Returns whether the backend may receive new work.
    pub(super) fn is_open(&self) -> bool {
        self.usable && self.role != Role::Draining
    }

    /// Returns whether the prefill backlog admits another prefill of any size. An idle engine
    /// always does. The fixed cost of the steps does not count: it is the same for any number of
    /// prompts.
    pub(super) fn has_prefill_room(&self, room: Seconds) -> bool {
        self.prefill.get() <= 0.0 || self.prefill - self.prefill_model.base < room
    }

    /// Returns whether a stream of `kv` tokens that will grow by `growth` fits into the KV memory
    /// less [`HEADROOM`]. An idle engine is never refused: if the request is too large,
    /// the engine answers with an error.
    pub(super) fn has_memory_for(&self, kv: Tokens, growth: Tokens) -> bool {
        if self.streams == 0 && self.prefill.get() <= 0.0 || self.kv_capacity == Tokens::ZERO {
            return true;
        }
        (self.kv + kv + growth).as_f64() <= self.kv_capacity.as_f64() * (1.0 - HEADROOM)
    }

    /// Duration of a decode step with one more stream of `kv` tokens.
    pub(super) fn step_with(&self, kv: Tokens) -> Seconds {
        self.decode_model.step(self.streams.saturating_add(1), self.kv + kv)
    }

    /// Returns whether one more stream of `kv` tokens keeps every step within `tpot`. If a single
    /// stream's step exceeds `tpot`, the target cannot be met and does not limit.
    pub(super) fn has_step_room(&self, kv: Tokens, tpot: Seconds) -> bool {
        self.streams == 0 || self.step_with(kv) <= tpot || self.decode_model.step(1, kv) > tpot
    }
}
