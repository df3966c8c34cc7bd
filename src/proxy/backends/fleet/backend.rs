//! One engine endpoint: its configuration, connections, in-flight account and health.

use arc_swap::{ArcSwap, ArcSwapOption};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use tidegate_engine::{EngineKind, Family, Kinds, paths};
use tidegate_scheduler::inflight::{Account, Balance};
use tidegate_scheduler::learn::HitSource;
use tidegate_types::{BackendId, GroupId, Moment, Role, RoleCapability, RoleSet, Seconds, Tokens};

use super::engine_epoch::EngineEpoch;
use super::hand_offs::HandOffTrials;
use super::health::{Health, HealthParams};
use super::pin::Pin;
use crate::backends::bootstrap::Bootstrap;
use crate::upstream::Pool;

/// One backend. Plain fields never change; each atomic states its writer.
pub struct Backend {
    /// Slot in the fleet, fixed while the process runs.
    pub id: BackendId,
    /// Its name in settings, logs, metrics and the admin API.
    pub name: Arc<str>,
    /// The configured compatibility group; the group in force is in the routing table.
    pub group: GroupId,
    /// The engine product.
    pub kind: EngineKind,
    /// The hand-off protocol.
    pub family: Family,
    /// How its role can be changed: by tidegate, by the engine itself, or only by a restart.
    pub capability: RoleCapability,
    /// The roles that its launch flags allow.
    pub allowed: RoleSet,
    /// Most streams it decodes at once (`max_num_seqs`).
    pub streams_max: u32,
    /// KV capacity in tokens: from the settings, else from the engine's metrics.
    kv_capacity: AtomicU64,
    /// Whether the settings give the capacity; the engine's report is then ignored.
    kv_capacity_is_set: bool,
    /// Port at which other engines contact it for a hand-off: bootstrap server or side channel.
    pub rendezvous_port: u16,
    /// Rendezvous data, fetched before its first hand-off.
    pub bootstrap: Bootstrap,
    /// Its epoch, if it enforces its role.
    pub epoch: EngineEpoch,
    /// HMAC key that authenticates hand-offs within its group.
    pub key: Option<Box<[u8]>>,
    /// Paths it serves beside those of its kind; `*` matches one segment.
    pub paths: Vec<String>,
    /// Its connections.
    pub pool: Pool,
    /// Its in-flight work: charged on placement, settled when the reservation is dropped.
    pub account: Arc<Account>,
    /// What trial hand-offs have shown. Written by the task of the trials.
    pub trials: HandOffTrials,
    /// Its health, from request outcomes and probes.
    pub health: Health,
    /// Facts reported by the engine, for the admin API and metrics. Written by the control loop.
    pub report: ArcSwap<EngineReport>,
    /// When the first of its streams exceeds its TPOT target if no further token arrives. Written
    /// by the control loop.
    tpot_deadline: AtomicU64,
    /// The same of the streams of other gateways. Written by the exchange of loads.
    others_tpot_deadline: AtomicU64,
    /// Block size of its prefix cache in tokens, once reported: only whole blocks are hits.
    kv_block: AtomicU32,
    /// Measured share of predicted prefix-cache hits that are real, as the bits of an `f32`, and
    /// its source. Written by the control loop.
    hit_share: AtomicU32,
    hit_source: AtomicU8,
    /// Whether it was removed: it gets no new work and leaves once drained. Written by the control
    /// loop.
    leaving: AtomicBool,
    /// Whether it is drained, too: its tasks end, and another backend may take its slot.
    left: AtomicBool,
    /// The hold on its role by an operator, for the admin API. Written by the control loop.
    pin: ArcSwapOption<Pin>,
}

/// KV capacity of an engine before it has reported one.
#[derive(Clone, Copy, Debug)]
pub struct KvCapacity {
    /// In tokens.
    pub tokens: Tokens,
    /// Whether it comes from the settings; if not, the engine's report replaces it.
    pub is_set: bool,
}

/// Facts reported by an engine, and differences from its settings or its group.
#[derive(Clone, Debug, Default)]
pub struct EngineReport {
    /// Engine version.
    pub version: Option<String>,
    /// The misfits, one sentence each.
    pub misfits: Vec<String>,
    /// The kinds of misfits, as values of the metric's `reason` label.
    pub kinds: Vec<&'static str>,
}

impl Backend {
    /// Whether both send the same keys to the engine.
    pub fn has_keys_of(&self, other: &Backend) -> bool {
        self.key == other.key && self.pool.address().key == other.pool.address().key
    }

    /// A backend without in-flight work.
    #[allow(clippy::too_many_arguments, reason = "one value a configured fact, called once")]
    pub fn new(
        id: BackendId,
        name: Arc<str>,
        group: GroupId,
        kind: EngineKind,
        family: Family,
        capability: RoleCapability,
        allowed: RoleSet,
        streams_max: u32,
        kv_capacity: KvCapacity,
        rendezvous_port: u16,
        bootstrap: Bootstrap,
        key: Option<Box<[u8]>>,
        paths: Vec<String>,
        pool: Pool,
        health: HealthParams,
    ) -> Backend {
        Backend {
            id,
            name,
            group,
            kind,
            family,
            capability,
            allowed,
            streams_max,
            kv_capacity: AtomicU64::new(kv_capacity.tokens.get()),
            kv_capacity_is_set: kv_capacity.is_set,
            rendezvous_port,
            bootstrap,
            epoch: EngineEpoch::default(),
            key,
            paths,
            pool,
            account: Arc::default(),
            trials: HandOffTrials::default(),
            health: Health::new(health),
            report: ArcSwap::default(),
            tpot_deadline: AtomicU64::new(Moment::NEVER.0),
            others_tpot_deadline: AtomicU64::new(Moment::NEVER.0),
            kv_block: AtomicU32::new(1),
            hit_share: AtomicU32::new(1.0f32.to_bits()),
            hit_source: AtomicU8::new(HitSource::Prior as u8),
            leaving: AtomicBool::new(false),
            left: AtomicBool::new(false),
            pin: ArcSwapOption::empty(),
        }
    }

    /// Whether its launch flags allow decoding after a hand-off. Some engines crash on a hand-off
    /// of the wrong kind.
    pub fn may_decode(&self) -> bool {
        self.allowed.contains(Role::Decode) || self.allowed.contains(Role::Mixed)
    }

    /// Whether it serves `path`, which engines of `kinds` serve.
    pub fn has_path(&self, kinds: Kinds, path: &str) -> bool {
        kinds.contains(self.kind) || self.paths.iter().any(|pattern| paths::matches(pattern, path))
    }

    /// How long its streams can pause before one of them exceeds its TPOT target.
    pub fn slack(&self, now: Moment) -> Seconds {
        self.tpot_deadline().min(Moment(self.others_tpot_deadline.load(Relaxed))) - now
    }

    /// When the first of this gateway's streams exceeds its TPOT target if no further token arrives.
    pub fn tpot_deadline(&self) -> Moment {
        Moment(self.tpot_deadline.load(Relaxed))
    }

    /// Sets what other gateways have in flight here, and when the first of their streams exceeds its
    /// TPOT target.
    pub fn set_others(&self, in_flight: &Balance, tpot_deadline: Moment) {
        self.account.set_others(in_flight);
        self.others_tpot_deadline.store(tpot_deadline.0, Relaxed);
    }

    /// KV capacity in tokens.
    pub fn kv_capacity(&self) -> Tokens {
        Tokens(self.kv_capacity.load(Relaxed))
    }

    /// Takes the capacity that the engine reports, unless the settings give one.
    pub fn report_kv_capacity(&self, tokens: Tokens) {
        if !self.kv_capacity_is_set && tokens > Tokens::ZERO {
            self.kv_capacity.store(tokens.get(), Relaxed);
        }
    }

    /// Rounds a predicted hit down to whole blocks of the engine's prefix cache.
    pub fn whole_blocks(&self, tokens: Tokens) -> Tokens {
        let block = u64::from(self.kv_block.load(Relaxed)).max(1);
        Tokens(tokens.get() - tokens.get() % block)
    }

    /// Sets the engine's block size in tokens.
    pub fn set_kv_block(&self, tokens: u32) {
        self.kv_block.store(tokens, Relaxed);
    }

    /// Whether it was removed and gets no new work.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// Whether it was removed and is drained.
    pub fn has_left(&self) -> bool {
        self.left.load(Relaxed)
    }

    /// Begins the removal. Called by the control loop.
    pub(crate) fn set_leaving(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Ends the removal. Called by the control loop.
    pub(crate) fn set_left(&self) {
        self.left.store(true, Relaxed);
    }

    /// The hold on its role by an operator.
    pub fn pin(&self) -> Option<Pin> {
        self.pin.load().as_deref().copied()
    }

    /// Sets or removes the hold. Called by the control loop.
    pub fn set_pin(&self, pin: Option<Pin>) {
        if self.pin() != pin {
            self.pin.store(pin.map(Arc::new));
        }
    }

    /// Sets when the first stream exceeds its TPOT target. Called by the control loop.
    pub fn set_tpot_deadline(&self, moment: Moment) {
        self.tpot_deadline.store(moment.0, Relaxed);
    }

    /// Share of predicted prefix-cache hits that are real, 0 to 1.
    pub fn hit_share(&self) -> f64 {
        f64::from(f32::from_bits(self.hit_share.load(Relaxed)))
    }

    /// Source of [`Backend::hit_share`].
    pub fn hit_source(&self) -> HitSource {
        let source = usize::from(self.hit_source.load(Relaxed));
        HitSource::ALL.get(source).copied().unwrap_or(HitSource::Prior)
    }

    /// Sets the share of real hits and its source. Called by the control loop.
    pub fn set_hit_share(&self, (share, source): (f64, HitSource)) {
        self.hit_share.store((share as f32).to_bits(), Relaxed);
        self.hit_source.store(source as u8, Relaxed);
    }
}
