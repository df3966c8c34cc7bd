//! State of the fleet: the configured backends ([`Backend`]), the snapshot that requests are routed
//! by ([`RoutingTable`]) and the in-flight requests ([`InflightRegistry`]). Requests only read the
//! table; the control loop is its only writer.

mod backend;
mod engine_epoch;
mod gaps;
mod hand_offs;
mod health;
mod inflight;
mod outlier;
mod pin;
mod roster;
mod table;
mod view;

pub use backend::{Backend, EngineReport, KvCapacity};
pub use engine_epoch::EngineEpoch;
pub use gaps::{GAP_BUCKETS, GAPS, Gaps};
pub use hand_offs::{FailedHandOff, HandOffTrials};
pub use health::{BACK_OFF_REQUESTED_MAX, Health, HealthParams};
pub use inflight::{InflightRegistry, InflightRequest, Stage};
pub use outlier::OutlierParams;
pub use pin::Pin;
pub use roster::{BackendRef, Backends};
pub use table::{EVERYONE, PoolEntry, RoutingTable, TableEntry};
pub use view::{KnownPrefixes, PlacementView};

use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;
use tidegate_scheduler::cost::PrefixIndex;
use tidegate_scheduler::learn::Estimates;
use tidegate_types::{BackendId, RequestId, Tokens};

use crate::backends::sampled_prompts::SampledPrompts;
use crate::backends::stored_objects::StoredObjects;
use roster::Roster;

/// State of the fleet, shared by requests, the dispatcher and the control loop.
pub struct Fleet {
    roster: Roster,
    /// The routing table, read by every request. Written by the control loop only.
    table: ArcSwap<RoutingTable>,
    /// Written by the control loop only.
    estimates: ArcSwap<Estimates>,
    /// The prefix index: which backends hold which prompt prefix.
    pub prefixes: PrefixIndex,
    /// Which backend stores which response (`previous_response_id`).
    pub stored: StoredObjects,
    /// Estimated prompts that an engine's `/tokenize` counts, and the models' calibrations.
    pub sampled_prompts: SampledPrompts,
    /// Requests between arrival and settlement.
    pub registry: InflightRegistry,
}

impl Fleet {
    /// A fleet with its first table.
    pub fn new(
        backends: Vec<Arc<Backend>>,
        table: RoutingTable,
        estimates: Estimates,
        prefixes: PrefixIndex,
    ) -> Fleet {
        Fleet {
            roster: Roster::new(backends),
            table: ArcSwap::from_pointee(table),
            estimates: ArcSwap::from_pointee(estimates),
            prefixes,
            stored: StoredObjects::default(),
            sampled_prompts: SampledPrompts::default(),
            registry: InflightRegistry::default(),
        }
    }

    /// The current table. Never blocks.
    pub fn table(&self) -> Guard<Arc<RoutingTable>> {
        self.table.load()
    }

    /// The current length estimates. Never blocks.
    pub fn estimates(&self) -> Guard<Arc<Estimates>> {
        self.estimates.load()
    }

    /// Every backend, by slot, including those that have left.
    pub fn backends(&self) -> Backends {
        self.roster.load()
    }

    /// The backend in a slot. Ids are only created from slots, so the slot exists.
    pub fn backend(&self, id: BackendId) -> BackendRef {
        self.roster.get(id)
    }

    /// The backend with this name, unless it is being removed.
    pub fn named(&self, name: &str) -> Option<Arc<Backend>> {
        self.backends().iter().find(|b| &*b.name == name && !b.is_leaving()).map(Arc::clone)
    }

    /// The slot for the next backend that joins.
    pub(crate) fn free_slot(&self) -> usize {
        self.roster.free()
    }

    /// Puts a backend into its slot. Called by the control loop only.
    pub(crate) fn join(&self, backend: Arc<Backend>) {
        self.roster.put(backend);
    }

    /// Expected real tokens of a predicted prefix-cache hit: all if the engine publishes KV events,
    /// else the measured share.
    pub fn real_hit(&self, backend: &Backend, held: Tokens) -> Tokens {
        Tokens((held.as_f64() * self.hit_share(backend)) as u64)
    }

    /// Share of predicted prefix-cache hits that are real on a backend, 0 to 1.
    pub fn hit_share(&self, backend: &Backend) -> f64 {
        match self.prefixes.has_kv_events(backend.id) {
            true => 1.0,
            false => backend.hit_share(),
        }
    }

    /// Source of [`Fleet::hit_share`].
    pub fn hit_source(&self, backend: &Backend) -> &'static str {
        match self.prefixes.has_kv_events(backend.id) {
            true => "events",
            false => backend.hit_source().as_str(),
        }
    }

    /// Replaces the table. Called by the control loop only.
    pub(crate) fn publish(&self, table: RoutingTable) {
        self.table.store(Arc::new(table));
    }

    /// Replaces the estimates. Called by the control loop only.
    pub(crate) fn publish_estimates(&self, estimates: Estimates) {
        self.estimates.store(Arc::new(estimates));
    }

    /// An in-flight request; `None` after its settlement.
    pub fn live(&self, id: RequestId) -> Option<Arc<InflightRequest>> {
        self.registry.get(id)
    }
}
