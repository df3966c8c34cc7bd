//! The engines as placement asks about them. The live proxy answers from atomics, the simulator
//! from plain structs; neither is known here.

use crate::cost::{DecodeModel, Matches, PrefillModel};
use crate::placement::Job;
use tidegate_types::{BackendId, GroupId, PoolId, Role, Seconds, Tokens};

/// One backend at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// What new work it is given.
    pub role: Role,
    /// May anything be sent to it?
    pub usable: bool,
    /// Is it a suspect (silent, ejected, backing off)? It gets new work only if no other backend can
    /// be used.
    pub last: bool,
    /// Does it take whole requests? If not, even those that should not be split are.
    pub runs_whole: bool,
    /// May it prefill for another backend, its role aside? Some engines die of it.
    pub hands_over: bool,
    /// Whom it may hand KV cache to.
    pub group: GroupId,
    /// How long the prefill work takes that was sent and is unfinished, that of whole requests
    /// included: all of it as one batch ([`PrefillModel::batch`]).
    pub prefill: Seconds,
    /// The uncached prompt tokens of that work.
    pub prefill_tokens: Tokens,
    /// Decode streams running or reserved.
    pub streams: u32,
    /// Those of them that have emitted nothing yet: on their way here, or behind a prefill.
    pub unbegun: u32,
    /// The most it runs at once.
    pub streams_max: u32,
    /// KV tokens of its streams.
    pub kv: Tokens,
    /// KV tokens it has memory for; 0 if unknown.
    pub kv_capacity: Tokens,
    /// How long it may be held up from now on before one of the streams that have begun misses its
    /// TPOT. Negative if one has; large if there is none.
    pub slack: Seconds,
    /// What a prefill costs there.
    pub prefill_model: PrefillModel,
    /// What a decode step costs there.
    pub decode_model: DecodeModel,
}

/// What is known of all engines now.
pub trait Fleet {
    /// Every backend of a pool, usable or not.
    fn pool(&self, pool: PoolId) -> &[BackendId];
    /// One backend's load, reservations included.
    fn load(&self, backend: BackendId) -> Load;
    /// How much of a job's prompt a backend has cached; less than the prompt.
    fn cached(&self, job: &Job, backend: BackendId) -> Tokens;
    /// Who holds the most of a job's prompt. Asked only of pools so large that a sample of them
    /// would miss the holders; a fleet that keeps the default loses locality there.
    fn holders(&self, _job: &Job) -> Matches {
        Matches::default()
    }
}

impl Load {
    /// Can new work be given to it at all?
    pub(super) fn is_open(&self) -> bool {
        self.usable && self.role != Role::Draining
    }

    /// May it be sent a prefill of whatever size? An idle engine always may. The fixed cost of the
    /// steps takes no room: it is paid however few prompts there are.
    pub(super) fn has_prefill_room(&self, room: Seconds) -> bool {
        self.prefill.get() <= 0.0 || self.prefill - self.prefill_model.base < room
    }

    /// Does a stream of `kv` tokens that will grow by `growth` fit, leaving `headroom` of the
    /// memory to the growth of those that run? An idle engine takes anything: if it is too much,
    /// the engine will say so.
    pub(super) fn has_memory_for(&self, kv: Tokens, growth: Tokens, headroom: f64) -> bool {
        if self.streams == 0 && self.prefill.get() <= 0.0 || self.kv_capacity == Tokens::ZERO {
            return true;
        }
        (self.kv + kv + growth).as_f64() <= self.kv_capacity.as_f64() * headroom
    }

    /// A decode step with one more stream of `kv` tokens.
    pub(super) fn step_with(&self, kv: Tokens) -> Seconds {
        self.decode_model.step(self.streams.saturating_add(1), self.kv + kv)
    }

    /// May it run one more stream of `kv` tokens with every step within `tpot`? Where not even a
    /// lone stream's step is, the target is lost anyway and does not limit.
    pub(super) fn has_step_room(&self, kv: Tokens, tpot: Seconds) -> bool {
        self.streams == 0 || self.step_with(kv) <= tpot || self.decode_model.step(1, kv) > tpot
    }
}
