//! The view of the engines that placement uses. The live proxy implements it on atomics, the
//! simulator on plain structs.

use crate::cost::{DecodeModel, Matches, PrefillModel, TransferModel};
use crate::placement::{Params, PrefillRequest};
use crate::tuning::{HEADROOM, UNCOMMON_WAIT_SHARE};
use tidegate_types::{BackendId, GroupId, PoolId, Role, Seconds, Targets, TightestTargets, Tokens};

/// State of one backend at one moment.
#[derive(Clone, Copy, Debug)]
pub struct BackendLoad {
    /// The role: the kind of new work that the backend receives.
    pub role: Role,
    /// Whether the backend may receive new work: not down, not faulty, compatible with the settings.
    pub usable: bool,
    /// Whether the backend is a suspect: silent, ejected or backing off. A suspect receives new work
    /// only if no other backend is usable.
    pub suspect: bool,
    /// Whether the backend serves colocated requests. If not, every request is disaggregated, short
    /// prompts included.
    pub colocates: bool,
    /// Whether the backend may hand off its prefills even while its role is `decode`. Some engines
    /// crash on a prefill leg that contradicts their launch flags.
    pub can_hand_off: bool,
    /// Whether the launch flags of the backend allow a decode leg.
    pub accepts_hand_off: bool,
    /// The compatibility group: backends that may hand KV cache to each other.
    pub group: GroupId,
    /// Predicted duration of the prefill work in flight, colocated requests included, computed as one
    /// batch ([`PrefillModel::batch`]).
    pub prefill: Seconds,
    /// Uncached prompt tokens of that work.
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
    /// Smallest targets of those streams that a single stream can meet.
    pub tightest: TightestTargets,
    /// Smallest TPOT slack of the streams with a first token: the longest stall from now that makes
    /// none of them miss its TPOT target. Negative if one already misses it; large without such
    /// streams.
    pub slack: Seconds,
    /// Cost model of a prefill on this backend.
    pub prefill_model: PrefillModel,
    /// Cost model of a decode step on this backend.
    pub decode_model: DecodeModel,
    /// Cost model of a hand-off within the backend's group.
    pub transfer_model: TransferModel,
}

/// Which TPOT targets limit the decode step of an engine for a request to place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TpotLimit {
    /// Its own target and those of the running streams.
    Every,
    /// The longer one of its own and that of `[slo]`. A request that has waited for a share of its TTFT
    /// target is placed even if streams of a stricter class then miss theirs: one stream with a target
    /// just above the base of a step would otherwise hold an engine alone.
    Common,
}

impl TpotLimit {
    /// Returns the limit for a request with `time_left` until its TTFT deadline.
    pub(super) fn at(time_left: Seconds, targets: &Targets) -> TpotLimit {
        match time_left < targets.slo.ttft * (1.0 - UNCOMMON_WAIT_SHARE) {
            true => TpotLimit::Common,
            false => TpotLimit::Every,
        }
    }
}

/// The state of all engines at one moment.
pub trait FleetLoads {
    /// Every backend of a pool, usable or not.
    fn pool(&self, pool: PoolId) -> &[BackendId];
    /// One backend's load, reservations included.
    fn load(&self, backend: BackendId) -> BackendLoad;
    /// Tokens of a request's prompt that a backend has cached; less than the prompt.
    fn cached(&self, job: &PrefillRequest, backend: BackendId) -> Tokens;
    /// The backends that hold the longest prefixes of a request's prompt. Called for pools larger
    /// than [`SAMPLE`](crate::tuning::SAMPLE), where the sample would miss them, and by the EDF
    /// queue. The default implementation returns none, and large pools then have no locality.
    fn holders(&self, _job: &PrefillRequest) -> Matches {
        Matches::default()
    }
}

impl BackendLoad {
    /// An idle, usable backend of group 0 with default costs, that may run every kind of leg.
    pub fn idle(role: Role) -> BackendLoad {
        BackendLoad {
            role,
            usable: true,
            suspect: false,
            colocates: true,
            can_hand_off: true,
            accepts_hand_off: true,
            group: GroupId(0),
            prefill: Seconds::ZERO,
            prefill_tokens: Tokens::ZERO,
            streams: 0,
            awaiting_first_token: 0,
            streams_max: u32::MAX,
            kv: Tokens::ZERO,
            kv_capacity: Tokens::ZERO,
            tightest: TightestTargets::default(),
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

    /// Returns whether the prefill backlog is below `backlog_max`, or the engine is idle. The fixed
    /// cost of the steps does not count: prompts of one step share it.
    pub(super) fn has_prefill_capacity(&self, backlog_max: Seconds) -> bool {
        self.prefill.get() <= 0.0 || self.prefill - self.prefill_model.base < backlog_max
    }

    /// Returns whether a stream of `kv` tokens that will grow by `growth` fits into `share` of the KV
    /// memory. True for an idle engine: it answers an oversized request with an error.
    fn has_memory_for(&self, kv: Tokens, growth: Tokens, share: f64) -> bool {
        if self.streams == 0 && self.prefill.get() <= 0.0 || self.kv_capacity == Tokens::ZERO {
            return true;
        }
        (self.kv + kv + growth).as_f64() <= self.kv_capacity.as_f64() * share
    }

    /// Returns the TPOT target by which a stall of the streams is judged: the smallest among them. A
    /// backend whose streams have none counts with `own`, that of the request to place.
    pub(super) fn streams_tpot(&self, own: Seconds) -> Seconds {
        self.tightest.tpot.unwrap_or(own)
    }

    /// Returns the smallest TPOT target of the streams and of one more, whose target is `own`.
    pub(super) fn shared_tpot(&self, own: Seconds) -> Seconds {
        self.tightest.tpot.map_or(own, |tpot| tpot.min(own))
    }

    /// Returns the duration of a decode step with one more stream of `kv` tokens.
    pub(super) fn step_with(&self, kv: Tokens) -> Seconds {
        self.decode_model.step(self.streams.saturating_add(1), self.kv + kv)
    }

    /// Returns whether one more stream of `kv` tokens that will grow by `growth` fits within the
    /// engine's own limit, the KV memory less [`HEADROOM`], and the TPOT targets of that stream and
    /// of the running ones. `admitted` gives the longest decode step for a target. Batch work is
    /// admitted to [`Params::batch_engine_share`] of the memory and of the smallest target of all
    /// classes, whatever `limit`.
    pub(super) fn admits_stream(
        &self,
        params: &Params,
        targets: &Targets,
        (kv, growth): (Tokens, Tokens),
        limit: TpotLimit,
        admitted: impl Fn(Seconds) -> Seconds,
    ) -> bool {
        let is_batch = targets.is_batch();
        let memory = if is_batch { params.batch_engine_share } else { 1.0 - HEADROOM };
        let (own, others) = match limit {
            _ if is_batch => (params.slo.tpot.min(params.class_tpot), self.tightest.tpot),
            TpotLimit::Every => (targets.slo.tpot, self.tightest.tpot),
            TpotLimit::Common => (targets.slo.tpot.max(params.slo.tpot), None),
        };
        let longest = |tpot| match is_batch {
            true => self.step_within(tpot, params.batch_engine_share),
            false => admitted(tpot),
        };
        let keeps = |tpot| self.keeps_tpot_with(kv, longest(tpot));
        self.streams < self.streams_max
            && self.has_memory_for(kv, growth, memory)
            && keeps(own)
            && others.is_none_or(keeps)
    }

    /// Returns the decode step that uses `share` of a TPOT target above the fixed cost of a step. A
    /// share of the whole target would leave no capacity where the target is tight.
    pub(super) fn step_within(&self, tpot: Seconds, share: f64) -> Seconds {
        let base = self.decode_model.base;
        base + (tpot - base).max(Seconds::ZERO) * share
    }

    /// Returns whether a decode step with one more stream of `kv` tokens stays within `tpot`. A
    /// target that a single stream misses cannot be met and does not limit.
    fn keeps_tpot_with(&self, kv: Tokens, tpot: Seconds) -> bool {
        self.streams == 0 || self.step_with(kv) <= tpot || self.decode_model.step(1, kv) > tpot
    }
}
