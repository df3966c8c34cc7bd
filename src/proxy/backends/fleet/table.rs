//! The routing table: an immutable snapshot, replaced by a new plan, a health change or new costs.
//! Each step of a request reads the current one.

use std::collections::HashMap;
use std::sync::Arc;
use tidegate_scheduler::cost::{DecodeModel, PrefillModel, TransferModel};
use tidegate_types::{BackendId, GroupId, Plan, PoolId, Role, Seconds, Tokens};

use crate::backends::demand::Demand;

/// The pool of all backends.
pub const EVERYONE: PoolId = PoolId(0);

/// One backend in this snapshot.
#[derive(Clone, Copy, Debug)]
pub struct TableEntry {
    /// Kind of new work it receives.
    pub role: Role,
    /// Its compatibility group: it may hand KV cache to backends of the same group.
    pub group: GroupId,
    /// Learned cost of a prefill.
    pub prefill: PrefillModel,
    /// Learned cost of a decode step.
    pub decode: DecodeModel,
    /// Learned cost of a hand-off within its group.
    pub transfer: TransferModel,
}

/// The entry of a backend that a snapshot does not contain.
static NO_ENTRY: TableEntry = TableEntry {
    role: Role::Draining,
    group: GroupId(0),
    prefill: PrefillModel {
        base: Seconds::ZERO,
        per_token: Seconds::ZERO,
        per_attention: Seconds::ZERO,
    },
    decode: DecodeModel {
        base: Seconds::ZERO,
        per_stream: Seconds::ZERO,
        free_streams: 0,
        per_kv_token: Seconds::ZERO,
    },
    transfer: TransferModel { base: Seconds::ZERO, per_token: Seconds::ZERO },
};

/// The backends that serve one model, or those of them whose context exceeds a length.
#[derive(Clone, Debug)]
pub struct PoolEntry {
    /// Number of the pool; numbers are not reused.
    pub id: PoolId,
    /// Name of the model.
    pub model: Arc<str>,
    /// Lower bound of the backends' context length, exclusive; `None`: all backends of the model.
    pub above: Option<Tokens>,
    /// Every backend that serves it, usable or not.
    pub backends: Vec<BackendId>,
    /// Context lengths that some backends have and others exceed, in ascending order, each with the
    /// pool of the others, for requests that need more.
    pub longer: Vec<(Tokens, PoolId)>,
    /// Mean prefill cost of its backends: the work that an arrival adds to demand.
    pub prefill: PrefillModel,
    /// Arrived and waiting work. Shared by all tables that contain the pool.
    pub demand: Arc<Demand>,
}

/// The routing table: roles, costs and pools of one plan.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    /// The plan in force.
    pub plan: Plan,
    /// By backend slot.
    pub entries: Vec<TableEntry>,
    /// Sorted by number. The first holds every backend, for requests without a model.
    pub pools: Vec<PoolEntry>,
    /// Model name to the pool of all its backends.
    pub models: HashMap<Arc<str>, PoolId>,
}

impl RoutingTable {
    /// The pool for a model, or the pool of all backends for `None`. Returns `None` for a model
    /// that no backend serves.
    pub fn pool_for(&self, model: Option<&str>) -> Option<PoolId> {
        match model {
            Some(model) => self.models.get(model).copied(),
            None => Some(EVERYONE),
        }
    }

    /// A pool; `None` if its model is no longer served.
    pub fn pool(&self, id: PoolId) -> Option<&PoolEntry> {
        let slot = self.pools.binary_search_by_key(&id, |pool| pool.id).ok()?;
        self.pools.get(slot)
    }

    /// The backends of a pool; empty if its model is no longer served.
    pub fn backends(&self, pool: PoolId) -> &[BackendId] {
        self.pool(pool).map_or(&[], |entry| &entry.backends)
    }

    /// A backend's entry; one without a role for a backend that joined after this snapshot.
    pub fn entry(&self, backend: BackendId) -> &TableEntry {
        self.entries.get(backend.index()).unwrap_or(&NO_ENTRY)
    }

    /// The pool for a request that needs a context of `needed` tokens.
    pub fn long_enough(&self, pool: PoolId, needed: Tokens) -> PoolId {
        let longer = self.pool(pool).map_or(&[][..], |entry| &entry.longer);
        let too_short = longer.iter().rev().find(|(context, _)| needed > *context);
        too_short.map_or(pool, |(_, above)| *above)
    }

    /// Recomputes the pools' mean prefill costs from their backends.
    pub fn set_mean_costs(&mut self) {
        for pool in &mut self.pools {
            let costs = pool.backends.iter().map(|id| self.entries[id.index()].prefill);
            pool.prefill = PrefillModel::mean(costs);
        }
    }
}
