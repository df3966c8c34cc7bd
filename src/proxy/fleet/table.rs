//! The routing table: the immutable snapshot that a request routes from. A new plan, a health
//! change or fresh costs make a new one; a request keeps the one it read.

use std::collections::HashMap;
use std::sync::Arc;
use tidegate_scheduler::cost::{DecodeModel, PrefillModel};
use tidegate_types::{BackendId, GroupId, Plan, PoolId, Role, Seconds, Tokens};

use crate::demand::Demand;

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

/// The backends that serve one model, or those of them with a longer context.
#[derive(Clone, Debug)]
pub struct PoolEntry {
    /// Its number. A number is never given again.
    pub id: PoolId,
    /// The model's name.
    pub model: Arc<str>,
    /// Only backends whose context is longer than this; `None`: all of the model's.
    pub above: Option<Tokens>,
    /// Every backend that serves it, usable or not.
    pub backends: Vec<BackendId>,
    /// Contexts that some of them have, in ascending order, each with the pool of the others: where
    /// a request goes that needs more.
    pub longer: Vec<(Tokens, PoolId)>,
    /// The mean cost of a prefill over them: what an arrival adds to demand.
    pub prefill: PrefillModel,
    /// Work that arrived and work that waits. Shared by all tables that have the pool.
    pub demand: Arc<Demand>,
}

/// Who may take what.
#[derive(Clone, Debug)]
pub struct RoutingTable {
    /// The plan in force.
    pub plan: Plan,
    /// By backend slot.
    pub entries: Vec<Entry>,
    /// In the order of their numbers; the first one holds every backend, for requests that name no
    /// model.
    pub pools: Vec<PoolEntry>,
    /// Model name to the pool of all its backends.
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

    /// A pool; `None` if its model is gone.
    pub fn pool(&self, id: PoolId) -> Option<&PoolEntry> {
        let slot = self.pools.binary_search_by_key(&id, |pool| pool.id).ok()?;
        self.pools.get(slot)
    }

    /// The backends of a pool; none if its model is gone.
    pub fn backends(&self, pool: PoolId) -> &[BackendId] {
        self.pool(pool).map_or(&[], |entry| &entry.backends)
    }

    /// One backend.
    pub fn entry(&self, backend: BackendId) -> &Entry {
        &self.entries[backend.index()]
    }

    /// Where a request of a pool goes that needs a context of so many tokens.
    pub fn long_enough(&self, pool: PoolId, needed: Tokens) -> PoolId {
        let longer = self.pool(pool).map_or(&[][..], |entry| &entry.longer);
        let too_short = longer.iter().rev().find(|(context, _)| needed > *context);
        too_short.map_or(pool, |(_, above)| *above)
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
