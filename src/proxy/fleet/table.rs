//! The routing table: the immutable snapshot that a request routes from. A new plan, a health
//! change or fresh costs make a new one; a request keeps the one it read.

use std::collections::HashMap;
use std::sync::Arc;
use tidegate_cost::{DecodeModel, PrefillModel};
use tidegate_terms::{BackendId, GroupId, Plan, PoolId, Role, Seconds};

/// The pool of all backends.
pub const EVERYONE: PoolId = PoolId(0);

/// One backend as this snapshot has it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What new work it gets.
    pub role: Role,
    /// Could it be used when the snapshot was made?
    pub usable: bool,
    /// Whom it may hand KV cache to.
    pub group: GroupId,
    /// What a prefill costs there.
    pub prefill: PrefillModel,
    /// What a decode step costs there.
    pub decode: DecodeModel,
}

/// The backends that serve one model.
#[derive(Clone, Debug)]
pub struct PoolEntry {
    /// The model's name.
    pub model: Arc<str>,
    /// Every backend that serves it, usable or not.
    pub backends: Vec<BackendId>,
    /// The mean cost of a prefill over them: what an arrival adds to demand.
    pub prefill: PrefillModel,
}

/// Who may take what.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    /// The plan in force.
    pub plan: Plan,
    /// By backend slot.
    pub entries: Vec<Entry>,
    /// By pool; the first one holds every backend, for requests that name no model.
    pub pools: Vec<PoolEntry>,
    /// Model name to pool.
    pub models: HashMap<Arc<str>, PoolId>,
}

impl RoutingTable {
    /// The pool for a request: its model's, or every backend if it names none. `None` for a model
    /// that no backend serves.
    pub fn pool_for(&self, model: Option<&str>) -> Option<PoolId> {
        match model {
            Some(model) => self.models.get(model).copied(),
            None => Some(EVERYONE),
        }
    }

    /// The backends of a pool.
    pub fn backends(&self, pool: PoolId) -> &[BackendId] {
        self.pools.get(pool.index()).map_or(&[], |entry| &entry.backends)
    }

    /// One backend.
    pub fn entry(&self, backend: BackendId) -> &Entry {
        &self.entries[backend.index()]
    }

    /// Bring the pools' mean costs up to date with their backends'.
    pub fn set_mean_costs(&mut self) {
        for pool in &mut self.pools {
            let n = pool.backends.len().max(1) as f64;
            let mut mean = PrefillModel {
                base: Seconds::ZERO,
                per_token: Seconds::ZERO,
                per_attention: Seconds::ZERO,
            };
            for id in &pool.backends {
                let cost = self.entries[id.index()].prefill;
                mean.base += cost.base / n;
                mean.per_token += cost.per_token / n;
                mean.per_attention += cost.per_attention / n;
            }
            pool.prefill = mean;
        }
    }
}
