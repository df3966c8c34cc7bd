//! One engine endpoint: what the operator said of it, how to reach it, what it owes, how it fares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use tidegate_engine::Family;
use tidegate_ledger::Account;
use tidegate_terms::{BackendId, GroupId, Moment, RoleCapability, RoleSet, Seconds, Tokens};

use crate::upstream::Pool;

/// One backend. The plain fields never change; the atomics are written as noted.
pub struct Backend {
    /// Its slot.
    pub id: BackendId,
    /// Its name in settings, logs, metrics and the admin API.
    pub name: Arc<str>,
    /// Whom it may hand KV cache to.
    pub group: GroupId,
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
    /// Where its bootstrap server listens; 0 where its family has none.
    pub bootstrap_port: u16,
    /// Its connections.
    pub pool: Pool,
    /// Its outstanding work; charged by requests, settled by their guards.
    pub account: Arc<Account>,
    /// Outcomes and probes.
    pub health: Health,
    /// When the first of its streams will miss its TPOT if nothing comes; written by the control
    /// loop.
    late_at: AtomicU64,
    /// Tokens of its prefix cache's blocks, once it told: it finds whole blocks only.
    kv_block: AtomicU32,
    /// When its last prefill leg ended: the next one's service time counts from there.
    prefill_ended: AtomicU64,
}

impl Backend {
    /// A backend with nothing outstanding.
    #[allow(clippy::too_many_arguments, reason = "one value a configured fact, called once")]
    pub fn new(
        id: BackendId,
        name: Arc<str>,
        group: GroupId,
        family: Family,
        capability: RoleCapability,
        allowed: RoleSet,
        streams_max: u32,
        kv_capacity: Tokens,
        bootstrap_port: u16,
        pool: Pool,
        failures_to_eject: u32,
    ) -> Backend {
        Backend {
            id,
            name,
            group,
            family,
            capability,
            allowed,
            streams_max,
            kv_capacity,
            bootstrap_port,
            pool,
            account: Arc::default(),
            health: Health::new(failures_to_eject),
            late_at: AtomicU64::new(Moment::NEVER.0),
            kv_block: AtomicU32::new(1),
            prefill_ended: AtomicU64::new(0),
        }
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

/// May new work go there? Written by requests (outcomes), the prober and the control loop.
#[derive(Debug)]
pub struct Health {
    state: AtomicU8,
    failures: AtomicU32,
    failures_to_eject: u32,
    /// Its GPU cannot be used, whatever its engine answers.
    hardware_fault: AtomicBool,
}

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;
const SILENT: u8 = 3;

impl Health {
    fn new(failures_to_eject: u32) -> Health {
        Health {
            state: AtomicU8::new(UNKNOWN),
            failures: AtomicU32::new(0),
            failures_to_eject: failures_to_eject.max(1),
            hardware_fault: AtomicBool::new(false),
        }
    }

    /// May new work go there? A backend that was never heard of may: the first request finds out.
    pub fn is_usable(&self) -> bool {
        matches!(self.state.load(Relaxed), UNKNOWN | UP) && !self.hardware_fault.load(Relaxed)
    }

    /// The word for logs and the admin API.
    pub fn as_str(&self) -> &'static str {
        match self.state.load(Relaxed) {
            UNKNOWN | UP if self.hardware_fault.load(Relaxed) => "hardware_fault",
            UNKNOWN => "unknown",
            UP => "up",
            DOWN => "down",
            _ => "silent",
        }
    }

    /// An answer came, or a probe succeeded. True if that brings the backend back.
    pub fn succeeded(&self) -> bool {
        self.failures.store(0, Relaxed);
        matches!(self.state.swap(UP, Relaxed), DOWN | SILENT)
    }

    /// A probe succeeded. True if that brings the backend back. A silent one stays out: engines
    /// whose step hangs still answer probes.
    pub fn probed(&self) -> bool {
        if self.state.load(Relaxed) == SILENT {
            return false;
        }
        if self.state.load(Relaxed) != UP {
            self.failures.store(0, Relaxed);
        }
        self.state.swap(UP, Relaxed) != UP
    }

    /// A leg or a probe failed. True if that takes the backend out.
    pub fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Relaxed) + 1;
        failures >= self.failures_to_eject && self.state.swap(DOWN, Relaxed) != DOWN
    }

    /// No connection: nothing listens there. True if that takes the backend out.
    pub fn refused(&self) -> bool {
        self.failures.fetch_add(1, Relaxed);
        self.state.swap(DOWN, Relaxed) != DOWN
    }

    /// Its GPU can or cannot be used. True if that is new.
    pub fn set_hardware_fault(&self, fault: bool) -> bool {
        self.hardware_fault.swap(fault, Relaxed) != fault
    }

    /// Its streams have gone silent. True if that takes the backend out.
    pub fn fell_silent(&self) -> bool {
        self.state.compare_exchange(UP, SILENT, Relaxed, Relaxed).is_ok()
    }

    /// A silent backend's streams speak again. True if that brings it back.
    pub fn spoke(&self) -> bool {
        self.state.compare_exchange(SILENT, UP, Relaxed, Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_out_after_enough_failures_and_back_after_one_success() {
        let health = Health::new(2);
        assert!(health.is_usable());
        assert!(!health.failed());
        assert!(health.is_usable());
        assert!(health.failed());
        assert!(!health.is_usable());
        assert!(!health.failed(), "it is out already");
        assert!(health.succeeded());
        assert!(health.is_usable());
        assert!(health.refused(), "a refused connection needs no second opinion");
    }

    #[test]
    fn silence_is_no_death() {
        let health = Health::new(2);
        health.succeeded();
        assert!(health.fell_silent());
        assert!(!health.is_usable());
        assert!(health.spoke());
        health.refused();
        assert!(!health.fell_silent(), "a dead backend stays dead");
        assert!(!health.spoke());
    }
}
