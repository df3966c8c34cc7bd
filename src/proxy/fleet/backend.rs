//! One engine endpoint: what the operator said of it, how to reach it, what it owes, how it fares.

use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use tidegate_engine::{EngineKind, Family};
use tidegate_ledger::Account;
use tidegate_terms::{BackendId, GroupId, Moment, Role, RoleCapability, RoleSet, Seconds, Tokens};

use super::health::{Health, HealthParams};
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
    /// KV tokens that fit into its memory.
    pub kv_capacity: Tokens,
    /// Where other engines meet it for a hand-off: its bootstrap server or its side channel.
    pub meeting_port: u16,
    /// What it told before its first pair.
    pub bootstrap: Bootstrap,
    /// What signs a hand-off for its group.
    pub key: Option<Box<[u8]>>,
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
    /// When its last prefill leg ended: the next one's service time counts from there.
    prefill_ended: AtomicU64,
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
        kv_capacity: Tokens,
        meeting_port: u16,
        bootstrap: Bootstrap,
        key: Option<Box<[u8]>>,
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
            kv_capacity,
            meeting_port,
            bootstrap,
            key,
            pool,
            account: Arc::default(),
            health: Health::new(health),
            words: ArcSwap::default(),
            late_at: AtomicU64::new(Moment::NEVER.0),
            kv_block: AtomicU32::new(1),
            prefill_ended: AtomicU64::new(0),
        }
    }

    /// Do its launch flags let it decode what another engine has prefilled? Some engines die of a
    /// hand-off of the wrong kind.
    pub fn may_decode(&self) -> bool {
        self.allowed.contains(Role::Decode) || self.allowed.contains(Role::Mixed)
    }

    /// How long this backend may be held up before one of its streams misses its TPOT.
    pub fn slack(&self, now: Moment) -> Seconds {
        Moment(self.late_at.load(Relaxed)) - now
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

    /// When the first stream will be late. For the control loop.
    pub fn set_late_at(&self, moment: Moment) {
        self.late_at.store(moment.0, Relaxed);
    }

    /// A prefill sent at `sent` ended at `now`: how long the engine worked on it. An engine takes
    /// prompts first come first served, so the work began when the one before it ended, if that
    /// was later than the sending.
    pub fn prefill_service(&self, sent: Moment, now: Moment) -> Seconds {
        let before = Moment(self.prefill_ended.fetch_max(now.0, Relaxed));
        now - sent.max(before)
    }
}
