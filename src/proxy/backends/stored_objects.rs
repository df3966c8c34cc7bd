//! Maps ids of stored objects (responses, stored chats, files, batches) to the backend that stores
//! them. Engines store objects in their own memory, so that a request for one must reach that
//! engine. Fixed memory, no locks. For an unknown id (overwritten, or after a restart) the engines
//! are tried in order.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use tidegate_types::BackendId;

/// Sets of [`WAYS`] ids, a power of two: 131,072 ids in 1 MiB, half an hour at 70 responses a second.
const SETS: usize = 1 << 14;
const WAYS: usize = 8;
/// Bits of a slot that name the backend.
const BACKEND_BITS: u32 = 16;

/// Ids of stored objects, each with its backend.
pub struct StoredObjects {
    /// 48 bits of the id's hash and the backend's slot plus 1; 0: free.
    slots: Box<[AtomicU64]>,
    /// Rotating index of the next entry to overwrite.
    hand: AtomicUsize,
}

impl Default for StoredObjects {
    fn default() -> StoredObjects {
        let slots = (0..SETS * WAYS).map(|_| AtomicU64::new(0)).collect();
        StoredObjects { slots, hand: AtomicUsize::new(0) }
    }
}

impl StoredObjects {
    /// Records that a backend answered with this id.
    pub fn note(&self, id: &str, backend: BackendId) {
        let (set, tag) = self.set_of(id);
        let entry = tag | (u64::from(backend.0) + 1);
        let same = |slot: &&AtomicU64| is_tagged(slot.load(Relaxed), tag);
        if let Some(known) = set.iter().find(same) {
            return known.store(entry, Relaxed);
        }
        let free = |slot: &AtomicU64| slot.compare_exchange(0, entry, Relaxed, Relaxed).is_ok();
        if !set.iter().any(free) {
            set[self.hand.fetch_add(1, Relaxed) % WAYS].store(entry, Relaxed);
        }
    }

    /// Returns the backend that stores it, if recorded.
    pub fn find(&self, id: &str) -> Option<BackendId> {
        let (set, tag) = self.set_of(id);
        let entry =
            set.iter().map(|slot| slot.load(Relaxed)).find(|entry| is_tagged(*entry, tag))?;
        let backend = entry & ((1 << BACKEND_BITS) - 1);
        u16::try_from(backend.checked_sub(1)?).ok().map(BackendId)
    }

    /// Forgets every id of a backend that has left.
    pub fn forget(&self, backend: BackendId) {
        let own = u64::from(backend.0) + 1;
        for slot in &self.slots {
            let entry = slot.load(Relaxed);
            if entry & ((1 << BACKEND_BITS) - 1) == own {
                // Lost to a writer whose entry is newer.
                slot.compare_exchange(entry, 0, Relaxed, Relaxed).ok();
            }
        }
    }

    fn set_of(&self, id: &str) -> (&[AtomicU64], u64) {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let hash = hasher.finish();
        let first = (hash as usize % SETS) * WAYS;
        (&self.slots[first..first + WAYS], hash >> BACKEND_BITS << BACKEND_BITS)
    }
}

fn is_tagged(entry: u64, tag: u64) -> bool {
    entry != 0 && entry >> BACKEND_BITS << BACKEND_BITS == tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_backend_of_an_id_is_remembered() {
        let stored = StoredObjects::default();
        assert_eq!(stored.find("resp_1"), None);
        stored.note("resp_1", BackendId(0));
        stored.note("resp_2", BackendId(u16::MAX - 1));
        assert_eq!(stored.find("resp_1"), Some(BackendId(0)));
        assert_eq!(stored.find("resp_2"), Some(BackendId(u16::MAX - 1)));
        stored.note("resp_1", BackendId(7));
        assert_eq!(stored.find("resp_1"), Some(BackendId(7)));
        assert_eq!(stored.find("resp_3"), None);
        stored.forget(BackendId(7));
        assert_eq!(stored.find("resp_1"), None);
        assert_eq!(stored.find("resp_2"), Some(BackendId(u16::MAX - 1)));
    }

    #[test]
    fn memory_is_fixed_and_recent_ids_are_found() {
        let stored = StoredObjects::default();
        let ids = SETS * WAYS * 2;
        for n in 0..ids {
            stored.note(&format!("resp_{n}"), BackendId((n % 5) as u16));
        }
        let latest = ids - SETS..ids;
        let there = latest
            .clone()
            .filter(|n| stored.find(&format!("resp_{n}")) == Some(BackendId((n % 5) as u16)));
        assert!(there.count() * 10 > latest.len() * 8, "at least 80 % of the latest ids are found");
    }
}
