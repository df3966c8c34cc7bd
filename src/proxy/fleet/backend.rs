//! One engine endpoint: what the operator said of it, how to reach it, what it owes, how it fares.

use arc_swap::{ArcSwap, ArcSwapOption};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use tidegate_engine::{EngineKind, Family, Kinds, paths};
use tidegate_scheduler::inflight::Account;
use tidegate_types::{BackendId, GroupId, Moment, Role, RoleCapability, RoleSet, Seconds, Tokens};

use super::health::{Health, HealthParams};
use super::pin::Pin;
use crate::bootstrap::Bootstrap;
use crate::upstream::Pool;

/// One backend. The plain fields never change; the atomics are written as noted.
pub struct Backend {
    /// Its slot.
    pub id: BackendId,
    /// Its name in settings, logs, metrics and the admin API.
    pub name: Arc<str>,
    /// Whom it may hand KV cache to by the settings; whom it may now is in the table.
    pub group: GroupId,
    /// Which server it is.
    pub kind: EngineKind,
    /// Which protocol it speaks.
    pub family: Family,
    /// Who may change its role.
    pub capability: RoleCapability,
    /// The roles its launch flags allow.
    pub allowed: RoleSet,
    /// Most streams it decodes at once.
    pub streams_max: u32,
    /// KV tokens that fit into its memory; the scraper's if the settings leave it out.
    kv_capacity: AtomicU64,
    /// The settings say how many: the engine's own count does not matter.
    kv_capacity_is_set: bool,
    /// Where other engines meet it for a hand-off: its bootstrap server or its side channel.
    pub meeting_port: u16,
    /// What it told before its first pair.
    pub bootstrap: Bootstrap,
    /// What signs a hand-off for its group.
    pub key: Option<Box<[u8]>>,
    /// Paths that it has beside those of its kind; `*` stands for a segment.
    pub paths: Vec<String>,
    /// Its connections.
    pub pool: Pool,
    /// Its outstanding work; charged by requests, settled by their guards.
    pub account: Arc<Account>,
    /// Outcomes and probes.
    pub health: Health,
    /// What its engine said of itself, for people; written by the control loop.
    pub words: ArcSwap<EngineWords>,
    /// When the first of its streams will miss its TPOT if nothing comes; written by the control
    /// loop.
    late_at: AtomicU64,
    /// Tokens of its prefix cache's blocks, once it told: it finds whole blocks only.
    kv_block: AtomicU32,
    /// The share of a predicted prefix-cache hit that is real, as the bits of an `f32`, and how that
    /// is known; written by the control loop.
    hit_share: AtomicU32,
    hit_source: AtomicU8,
    /// How an operator set its role, for the admin address; written by the control loop.
    pin: ArcSwapOption<Pin>,
}

/// KV tokens that fit into an engine's memory, before it was asked.
#[derive(Clone, Copy, Debug)]
pub struct KvCapacity {
    /// How many.
    pub tokens: Tokens,
    /// Do the settings say so? If not, the engine's own count replaces it.
    pub is_set: bool,
}

/// How the real share of a backend's predicted prefix-cache hits is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HitSource {
    /// Nothing was seen yet: the index is believed.
    Prior,
    /// From how long prefills take.
    Durations,
    /// From the engine's counters.
    Counters,
    /// From the cached tokens that the engine reports with its answers.
    Usage,
}

impl HitSource {
    const ALL: [HitSource; 4] =
        [HitSource::Prior, HitSource::Durations, HitSource::Counters, HitSource::Usage];

    /// The word in `/v1/fleet`.
    pub const fn as_str(self) -> &'static str {
        match self {
            HitSource::Prior => "prior",
            HitSource::Durations => "durations",
            HitSource::Counters => "counters",
            HitSource::Usage => "usage",
        }
    }
}

/// What an engine said of itself, and in what that is not what was said of it.
#[derive(Clone, Debug, Default)]
pub struct EngineWords {
    /// Its version.
    pub version: Option<String>,
    /// What does not fit, in a sentence each.
    pub misfits: Vec<String>,
    /// The same as words for metrics.
    pub kinds: Vec<&'static str>,
}

impl Backend {
    /// A backend with nothing outstanding.
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
        meeting_port: u16,
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
            meeting_port,
            bootstrap,
            key,
            paths,
            pool,
            account: Arc::default(),
            health: Health::new(health),
            words: ArcSwap::default(),
            late_at: AtomicU64::new(Moment::NEVER.0),
            kv_block: AtomicU32::new(1),
            hit_share: AtomicU32::new(1.0f32.to_bits()),
            hit_source: AtomicU8::new(HitSource::Prior as u8),
            pin: ArcSwapOption::empty(),
        }
    }

    /// Do its launch flags let it decode what another engine has prefilled? Some engines die of a
    /// hand-off of the wrong kind.
    pub fn may_decode(&self) -> bool {
        self.allowed.contains(Role::Decode) || self.allowed.contains(Role::Mixed)
    }

    /// Does it have this path, which those kinds have?
    pub fn has_path(&self, kinds: Kinds, path: &str) -> bool {
        kinds.contains(self.kind) || self.paths.iter().any(|pattern| paths::matches(pattern, path))
    }

    /// How long this backend may be held up before one of its streams misses its TPOT.
    pub fn slack(&self, now: Moment) -> Seconds {
        Moment(self.late_at.load(Relaxed)) - now
    }

    /// KV tokens that fit into its memory.
    pub fn kv_capacity(&self) -> Tokens {
        Tokens(self.kv_capacity.load(Relaxed))
    }

    /// The engine told how many KV tokens fit; what the settings say comes first.
    pub fn told_kv_capacity(&self, tokens: Tokens) {
        if !self.kv_capacity_is_set && tokens > Tokens::ZERO {
            self.kv_capacity.store(tokens.get(), Relaxed);
        }
    }

    /// Of so many tokens that it should have, those that it finds: whole blocks of its own.
    pub fn whole_blocks(&self, tokens: Tokens) -> Tokens {
        let block = u64::from(self.kv_block.load(Relaxed)).max(1);
        Tokens(tokens.get() - tokens.get() % block)
    }

    /// It told how large its blocks are.
    pub fn set_kv_block(&self, tokens: u32) {
        self.kv_block.store(tokens, Relaxed);
    }

    /// How an operator set its role, if at all.
    pub fn pin(&self) -> Option<Pin> {
        self.pin.load().as_deref().copied()
    }

    /// An operator set its role, or released it. For the control loop.
    pub fn set_pin(&self, pin: Option<Pin>) {
        if self.pin() != pin {
            self.pin.store(pin.map(Arc::new));
        }
    }

    /// When the first stream will be late. For the control loop.
    pub fn set_late_at(&self, moment: Moment) {
        self.late_at.store(moment.0, Relaxed);
    }

    /// The share of a predicted prefix-cache hit that is real, 0 to 1.
    pub fn hit_share(&self) -> f64 {
        f64::from(f32::from_bits(self.hit_share.load(Relaxed)))
    }

    /// How that is known.
    pub fn hit_source(&self) -> HitSource {
        let source = usize::from(self.hit_source.load(Relaxed));
        HitSource::ALL.get(source).copied().unwrap_or(HitSource::Prior)
    }

    /// The share of a predicted hit that is real. For the control loop.
    pub fn set_hit_share(&self, (share, source): (f64, HitSource)) {
        self.hit_share.store((share as f32).to_bits(), Relaxed);
        self.hit_source.store(source as u8, Relaxed);
    }
}
