//! The backends by slot, as one immutable snapshot that is replaced when a backend joins. Reading is
//! lock-free. A removed backend stays in its slot until another backend takes the slot, so that every
//! issued id can be resolved.

use arc_swap::{ArcSwap, Guard};
use std::ops::Deref;
use std::sync::Arc;
use tidegate_types::{BackendId, Moment};

use super::{Backend, RoutingTable};

/// Every backend, by slot. Written by the control loop only.
pub struct Roster(ArcSwap<Vec<Arc<Backend>>>);

/// A snapshot of all slots, including those whose backend has left.
pub struct Backends(Guard<Arc<Vec<Arc<Backend>>>>);

/// The backend in one slot of a snapshot.
pub struct BackendRef {
    all: Backends,
    slot: usize,
}

impl Roster {
    /// The backends that the settings name.
    pub fn new(backends: Vec<Arc<Backend>>) -> Roster {
        Roster(ArcSwap::from_pointee(backends))
    }

    pub fn load(&self) -> Backends {
        Backends(self.0.load())
    }

    /// The backend in a slot. Ids are only created from slots, and slots are not removed.
    pub fn get(&self, id: BackendId) -> BackendRef {
        BackendRef { all: self.load(), slot: id.index() }
    }

    /// Puts a backend into its slot, which is the next new one or a free one.
    pub fn put(&self, backend: Arc<Backend>) {
        let mut next = (**self.0.load()).clone();
        backend.id.put(&mut next, backend);
        self.0.store(Arc::new(next));
    }

    /// Returns a slot whose backend has left and has no other reference, else the next new slot.
    pub fn free(&self) -> usize {
        let now = self.0.load();
        let free = |backend: &Arc<Backend>| backend.has_left() && Arc::strong_count(backend) == 1;
        now.iter().position(free).unwrap_or(now.len())
    }
}

impl Backends {
    /// Most streams that may be on a backend at once. During slow start it is a growing share of
    /// the peers' mean; a backend without peers gets its full number.
    pub fn streams_max(&self, table: &RoutingTable, id: BackendId, now: Moment) -> u32 {
        let backend = &self[id.index()];
        let share = backend.health.share(now);
        if share >= 1.0 {
            return backend.streams_max;
        }
        let group = table.entry(id).group;
        let peers = self.iter().filter(|peer| {
            let entry = table.entry(peer.id);
            peer.id != id
                && entry.group == group
                && entry.role.takes_decode()
                && peer.health.is_usable()
                && !peer.health.is_suspect(now)
                && peer.health.share(now) >= 1.0
        });
        let (streams, peers) = peers.fold((0, 0), |(streams, peers), peer| {
            (streams + peer.account.total().streams, peers + 1_u32)
        });
        if peers == 0 {
            return backend.streams_max;
        }
        let mean = f64::from(streams) / f64::from(peers);
        (((mean + 1.0) * share).ceil() as u32).clamp(1, backend.streams_max)
    }
}

impl Deref for Backends {
    type Target = [Arc<Backend>];

    fn deref(&self) -> &[Arc<Backend>] {
        &self.0
    }
}

impl Deref for BackendRef {
    type Target = Arc<Backend>;

    fn deref(&self) -> &Arc<Backend> {
        &self.all[self.slot]
    }
}
