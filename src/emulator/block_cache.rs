//! Optional LRU prefix cache of block hashes. Its capacity equals the KV memory; memory of running
//! sequences is not deducted (vLLM's cache uses only what they leave free).

use std::collections::{BTreeMap, HashMap};
use tidegate_types::Tokens;

use crate::tokens::BLOCK_TOKENS;

/// Blocks by their chained hash.
#[derive(Debug)]
pub struct BlockCache {
    used: HashMap<u64, u64>,
    by_age: BTreeMap<u64, u64>,
    turn: u64,
    blocks_max: usize,
}

impl BlockCache {
    /// Creates a cache for a memory of `capacity` tokens.
    pub fn new(capacity: Tokens) -> BlockCache {
        BlockCache {
            used: HashMap::new(),
            by_age: BTreeMap::new(),
            turn: 0,
            blocks_max: (capacity.get() as usize / BLOCK_TOKENS).max(1),
        }
    }

    /// Converts a number of blocks to tokens.
    pub fn tokens(blocks: usize) -> u64 {
        (blocks * BLOCK_TOKENS) as u64
    }

    /// Returns how many leading tokens of this chain are cached.
    pub fn known(&self, chain: &[u64]) -> u64 {
        Self::tokens(chain.iter().take_while(|block| self.used.contains_key(block)).count())
    }

    /// Returns how many leading tokens of this chain are cached, and caches the whole chain.
    pub fn touch(&mut self, chain: &[u64]) -> u64 {
        let hit = self.known(chain);
        // The last block becomes the oldest: a prefix is evicted after its extensions.
        for block in chain.iter().rev() {
            self.turn += 1;
            if let Some(before) = self.used.insert(*block, self.turn) {
                self.by_age.remove(&before);
            }
            self.by_age.insert(self.turn, *block);
        }
        while self.used.len() > self.blocks_max {
            let Some((_, block)) = self.by_age.pop_first() else { break };
            self.used.remove(&block);
        }
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_prefix_counts_and_the_oldest_block_is_evicted_first() {
        let mut cache = BlockCache::new(Tokens(4 * BLOCK_TOKENS as u64));
        assert_eq!(cache.touch(&[1, 2, 3]), 0);
        assert_eq!(cache.touch(&[1, 2, 4]), 2 * BLOCK_TOKENS as u64);
        assert_eq!(cache.touch(&[5]), 0);
        assert_eq!(
            cache.touch(&[1, 2, 3]),
            2 * BLOCK_TOKENS as u64,
            "block 3 was evicted as the oldest"
        );
    }
}
