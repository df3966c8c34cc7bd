//! Placement's read-only view of the fleet: roles and costs of a table with the current counters of
//! the accounts.

use std::collections::HashMap;
use std::sync::Arc;
use tidegate_scheduler::cost::Matches;
use tidegate_scheduler::dispatch::{Accounts, load_of};
use tidegate_scheduler::inflight::Account;
use tidegate_scheduler::placement::{BackendLoad, PrefillRequest};
use tidegate_types::{BackendId, Moment, PoolId, RequestId, Role, Tokens};

use super::{Backend, Backends, Fleet, RoutingTable};

/// Prefix matches of the requests that are being placed.
pub enum KnownPrefixes<'a> {
    /// Of one request: the fast path.
    One(&'a Matches),
    /// Of all queued requests: the dispatcher's pass.
    Many(&'a HashMap<RequestId, Matches>),
}

/// A table and the accounts at one moment.
pub struct PlacementView<'a> {
    /// The prefix index.
    pub fleet: &'a Fleet,
    /// Accounts and health. One snapshot serves the whole placement, which reads each backend
    /// several times.
    pub backends: Backends,
    /// Roles, pools and costs.
    pub table: &'a RoutingTable,
    /// Prefix matches of the requests to place.
    pub known: KnownPrefixes<'a>,
    /// Tokens per block of the prefix index.
    pub block: Tokens,
    /// Time of the view.
    pub now: Moment,
    /// Whether the candidates of each placement are recorded.
    pub records_candidates: bool,
}

impl PlacementView<'_> {
    /// The backend in a slot.
    pub fn backend(&self, id: BackendId) -> &Arc<Backend> {
        &self.backends[id.index()]
    }

    /// Most streams that may be on a backend at once.
    pub fn streams_max(&self, id: BackendId) -> u32 {
        self.backends.streams_max(self.table, id, self.now)
    }

    /// Tokens of a job's prompt that the prefix index predicts to be cached on a backend, in whole
    /// blocks of the engine.
    pub fn held(&self, job: &PrefillRequest, backend: BackendId) -> Tokens {
        let blocks = match self.known {
            KnownPrefixes::One(matches) => matches.blocks_on(backend),
            KnownPrefixes::Many(all) => {
                all.get(&job.id).map_or(0, |matches| matches.blocks_on(backend))
            }
        };
        // The last prompt token is always computed.
        let held = Tokens(u64::from(blocks) * self.block.get()).min(job.prompt - Tokens(1));
        self.backend(backend).whole_blocks(held)
    }
}

impl tidegate_scheduler::placement::FleetLoads for PlacementView<'_> {
    fn pool(&self, pool: PoolId) -> &[BackendId] {
        self.table.backends(pool)
    }

    fn load(&self, id: BackendId) -> BackendLoad {
        let entry = self.table.entry(id);
        let backend = self.backend(id);
        let fixed = BackendLoad {
            role: entry.role,
            usable: backend.health.is_usable(),
            suspect: backend.health.is_suspect(self.now),
            colocates: backend.family.serves_colocated(),
            can_hand_off: backend.allowed.contains(Role::Prefill) && backend.trials.may_hand_off(),
            accepts_hand_off: backend.may_decode() && backend.trials.may_accept(),
            group: entry.group,
            streams_max: self.streams_max(id),
            kv_capacity: backend.kv_capacity(),
            prefill_model: entry.prefill,
            decode_model: entry.decode,
            transfer_model: entry.transfer,
            ..BackendLoad::idle(entry.role)
        };
        load_of(fixed, &backend.account, Some(backend.slack(self.now)))
    }

    fn holders(&self, job: &PrefillRequest) -> Matches {
        match self.known {
            KnownPrefixes::One(matches) => *matches,
            KnownPrefixes::Many(all) => all.get(&job.id).copied().unwrap_or_default(),
        }
    }

    fn cached(&self, job: &PrefillRequest, backend: BackendId) -> Tokens {
        let (held, backend) = (self.held(job, backend), self.backend(backend));
        backend.whole_blocks(self.fleet.real_hit(backend, held))
    }
}

impl Accounts for PlacementView<'_> {
    type Counter = std::sync::atomic::AtomicU64;

    fn account(&self, id: BackendId) -> &Arc<Account> {
        &self.backend(id).account
    }

    fn predicted_hit(&self, job: &PrefillRequest, id: BackendId) -> Tokens {
        self.held(job, id)
    }

    fn records_candidates(&self) -> bool {
        self.records_candidates
    }
}
