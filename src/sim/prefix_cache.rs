//! Prefix cache of one engine: prompt blocks whose KV is in memory, with LRU eviction as in vLLM
//! and SGLang. Blocks used by a running sequence are pinned.

use std::collections::{BTreeMap, BTreeSet};
use tidegate_types::Tokens;

/// Tokens of one block of a trace's `hash_ids`: docs/spec/trace-formats.md.
pub(crate) const BLOCK_TOKENS: u64 = 512;

#[derive(Clone, Debug, Default)]
pub(crate) struct PrefixCache {
    blocks: BTreeMap<u64, Block>,
    /// Unpinned blocks ordered by last use: the eviction order.
    idle: BTreeSet<(u64, u64)>,
    /// Logical clock of `last_use`, incremented when a block is unpinned.
    uses: u64,
    /// Changes since [`take_changes`](PrefixCache::take_changes), if they are reported.
    changes: Option<Vec<CacheChange>>,
}

/// KV event of an engine: a block entered its prefix cache or was evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheChange {
    Stored(u64),
    Removed(u64),
}

#[derive(Clone, Copy, Debug)]
struct Block {
    pins: u32,
    last_use: u64,
}

impl PrefixCache {
    /// Returns an empty cache that reports its changes, as engines with KV events do.
    pub(crate) fn with_events() -> PrefixCache {
        PrefixCache { changes: Some(Vec::new()), ..PrefixCache::default() }
    }

    /// Returns the changes since the previous call, in order.
    pub(crate) fn take_changes(&mut self) -> Vec<CacheChange> {
        self.changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn note(&mut self, change: CacheChange) {
        if let Some(changes) = &mut self.changes {
            changes.push(change);
        }
    }

    /// Returns the prompt tokens in leading cached blocks. Only full blocks are reused.
    pub(crate) fn hit(&self, blocks: &[u64], prompt: Tokens) -> Tokens {
        let cached = full(blocks, prompt).iter().take_while(|id| self.blocks.contains_key(*id));
        Tokens(cached.count() as u64 * BLOCK_TOKENS)
    }

    /// Adds the prompt's full blocks, whose KV a sequence computed or received, and pins them.
    pub(crate) fn pin(&mut self, blocks: &[u64], prompt: Tokens) {
        for id in full(blocks, prompt) {
            if !self.blocks.contains_key(id) {
                self.note(CacheChange::Stored(*id));
            }
            let block = self.blocks.entry(*id).or_insert(Block { pins: 0, last_use: 0 });
            if block.pins == 0 {
                self.idle.remove(&(block.last_use, *id));
            }
            block.pins += 1;
        }
    }

    /// Pins only the leading cached blocks, while the rest of the prompt is computed.
    pub(crate) fn pin_hit(&mut self, blocks: &[u64], prompt: Tokens) -> Tokens {
        let hit = self.hit(blocks, prompt);
        self.pin(blocks, hit);
        hit
    }

    /// Unpins a sequence's blocks, the deepest first, so that chains are evicted from their end.
    pub(crate) fn unpin(&mut self, blocks: &[u64], prompt: Tokens) {
        for id in full(blocks, prompt).iter().rev() {
            let Some(block) = self.blocks.get_mut(id) else { continue };
            block.pins = block.pins.saturating_sub(1);
            if block.pins == 0 {
                self.uses += 1;
                block.last_use = self.uses;
                self.idle.insert((block.last_use, *id));
            }
        }
    }

    /// Evicts unpinned blocks beyond `free` tokens of memory.
    pub(crate) fn evict_beyond(&mut self, free: Tokens) {
        while self.idle.len() as u64 * BLOCK_TOKENS > free.get() {
            let Some((_, id)) = self.idle.pop_first() else { return };
            self.blocks.remove(&id);
            self.note(CacheChange::Removed(id));
        }
    }

    /// Returns the number of cached blocks.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }
}

/// Returns the blocks that the prompt fills completely.
fn full(blocks: &[u64], prompt: Tokens) -> &[u64] {
    let count = (prompt.get() / BLOCK_TOKENS) as usize;
    &blocks[..count.min(blocks.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_full_blocks_hit_and_the_least_recently_used_is_evicted() {
        let mut cache = PrefixCache::default();
        cache.pin(&[1, 2, 3], Tokens(1300));
        assert_eq!(cache.hit(&[1, 2, 3], Tokens(1300)), Tokens(1024), "a partial block is no hit");
        assert_eq!(cache.hit(&[2, 1], Tokens(1024)), Tokens(1024));
        assert_eq!(cache.hit(&[9, 1], Tokens(1024)), Tokens(0), "a hit is a prefix");
        cache.pin(&[7], Tokens(512));
        cache.unpin(&[7], Tokens(512));
        cache.unpin(&[1, 2], Tokens(1024));
        cache.evict_beyond(Tokens(1024));
        assert_eq!(
            cache.hit(&[7], Tokens(512)),
            Tokens(0),
            "block 7 was used last the longest ago"
        );
        cache.evict_beyond(Tokens(512));
        assert_eq!(
            cache.hit(&[1, 2], Tokens(1024)),
            Tokens(512),
            "a chain is evicted from its end"
        );
    }

    #[test]
    fn pinned_blocks_stay() {
        let mut cache = PrefixCache::default();
        cache.pin(&[1, 2], Tokens(1024));
        cache.pin(&[1], Tokens(512));
        cache.unpin(&[1, 2], Tokens(1024));
        cache.evict_beyond(Tokens(0));
        assert_eq!((cache.hit(&[1, 2], Tokens(1024)), cache.len()), (Tokens(512), 1));
    }
}
