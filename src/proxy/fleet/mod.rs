//! The engines as the proxy knows them: what was configured ([`Backend`]), the snapshot that
//! requests route from ([`RoutingTable`]) and the requests alive ([`Registry`]). Requests only
//! read here; the control loop is the one writer of the table.

mod backend;
mod health;
mod live;
mod outlier;
mod pin;
mod table;
mod view;

pub use backend::{Backend, EngineWords, HitSource, KvCapacity};
pub use health::{BACK_OFF_ASKED_MAX, Health, HealthParams};
pub use live::{Live, Registry, Stage};
pub use outlier::OutlierParams;
pub use pin::Pin;
pub use table::{EVERYONE, Entry, PoolEntry, RoutingTable};
pub use view::{Known, View};

use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;
use tidegate_scheduler::cost::{ByteEstimator, OutputEstimate, PrefixIndex};
use tidegate_types::{BackendId, Moment, RequestId, Slo, Tokens};

use crate::kept::Kept;

/// What the control loop learned about lengths, for requests to read.
#[derive(Clone, Debug)]
pub struct Estimates {
    /// Output tokens to expect of a request.
    pub output: OutputEstimate,
    /// Tokens of a text where no tokenizer is there.
    pub bytes: ByteEstimator,
}

/// Everything that requests, the dispatcher and the control loop share about the engines.
pub struct Fleet {
    /// Every backend, by slot. Fixed while the process runs.
    pub backends: Vec<Arc<Backend>>,
    /// Who may take what. Read by every request; written by the control loop alone.
    table: ArcSwap<RoutingTable>,
    /// Written by the control loop alone.
    estimates: ArcSwap<Estimates>,
    /// Which backend holds which prompt prefix.
    pub prefixes: PrefixIndex,
    /// Which backend keeps which response.
    pub kept: Kept,
    /// Requests between arrival and settlement.
    pub registry: Registry,
    /// What clients were promised.
    slo: Slo,
}

impl Fleet {
    /// A fleet with its first table.
    pub fn new(
        backends: Vec<Arc<Backend>>,
        table: RoutingTable,
        estimates: Estimates,
        prefixes: PrefixIndex,
        slo: Slo,
    ) -> Fleet {
        Fleet {
            backends,
            table: ArcSwap::from_pointee(table),
            estimates: ArcSwap::from_pointee(estimates),
            prefixes,
            kept: Kept::default(),
            registry: Registry::default(),
            slo,
        }
    }

    /// What clients were promised.
    pub fn slo(&self) -> Slo {
        self.slo
    }

    /// The present snapshot. Never blocks.
    pub fn table(&self) -> Guard<Arc<RoutingTable>> {
        self.table.load()
    }

    /// What lengths to expect. Never blocks.
    pub fn estimates(&self) -> Guard<Arc<Estimates>> {
        self.estimates.load()
    }

    /// The backend in a slot. Ids are only made from slots, so the slot exists.
    pub fn backend(&self, id: BackendId) -> &Arc<Backend> {
        &self.backends[id.index()]
    }

    /// How many streams may be on a backend at once. One that has come back gets a share of what
    /// its peers have, which grows; without peers it has to take all.
    pub fn streams_max(&self, table: &RoutingTable, id: BackendId, now: Moment) -> u32 {
        let backend = self.backend(id);
        let share = backend.health.share(now);
        if share >= 1.0 {
            return backend.streams_max;
        }
        let group = table.entry(id).group;
        let peers = self.backends.iter().filter(|peer| {
            let entry = table.entry(peer.id);
            peer.id != id
                && entry.group == group
                && entry.role.takes_decode()
                && peer.health.is_usable()
                && !peer.health.is_last(now)
                && peer.health.share(now) >= 1.0
        });
        let (streams, peers) = peers.fold((0, 0), |(streams, peers), peer| {
            (streams + peer.account.balance().streams, peers + 1_u32)
        });
        if peers == 0 {
            return backend.streams_max;
        }
        let mean = f64::from(streams) / f64::from(peers);
        (((mean + 1.0) * share).ceil() as u32).clamp(1, backend.streams_max)
    }

    /// Of so many tokens of a prompt that the prefix index says a backend holds, those that it will
    /// not compute again: all if the engine itself says what it holds, else the share that proved
    /// real.
    pub fn real_hit(&self, backend: BackendId, held: Tokens) -> Tokens {
        Tokens((held.as_f64() * self.hit_share(backend)) as u64)
    }

    /// The share of a predicted prefix-cache hit that is real on a backend.
    pub fn hit_share(&self, backend: BackendId) -> f64 {
        match self.prefixes.is_followed(backend) {
            true => 1.0,
            false => self.backend(backend).hit_share(),
        }
    }

    /// How that is known.
    pub fn hit_source(&self, backend: BackendId) -> &'static str {
        match self.prefixes.is_followed(backend) {
            true => "events",
            false => self.backend(backend).hit_source().as_str(),
        }
    }

    /// Replace the snapshot. For the control loop alone.
    pub(crate) fn publish(&self, table: RoutingTable) {
        self.table.store(Arc::new(table));
    }

    /// Replace the estimates. For the control loop alone.
    pub(crate) fn publish_estimates(&self, estimates: Estimates) {
        self.estimates.store(Arc::new(estimates));
    }

    /// A request's entry, if it is still alive.
    pub fn live(&self, id: RequestId) -> Option<Arc<Live>> {
        self.registry.get(id)
    }
}
