//! The mirror against a simple model of an engine's cache.

use super::*;
use crate::kv::event::BlockKeys;
use proptest::prelude::*;
use std::collections::BTreeSet;

const MODEL: &str = "tiny";

/// An engine that uses the prompt prefix as hash, and an index fed by the mirror.
struct EngineCache {
    size: usize,
    block: usize,
    mirror: KvMirror,
    index: BTreeSet<u64>,
}

impl EngineCache {
    fn new(size: usize, block: usize, blocks_max: usize) -> EngineCache {
        let mirror = KvMirror::new(MODEL, block, blocks_max);
        EngineCache { size, block, mirror, index: BTreeSet::new() }
    }

    fn apply(&mut self, event: KvEvent) {
        let index = &mut self.index;
        self.mirror.apply(&event, &mut |change| match change {
            BlockChange::Held(hash) => {
                index.insert(hash);
            }
            BlockChange::Gone(hash) => {
                assert!(index.remove(&hash), "a block is removed that was not in the index")
            }
            BlockChange::Cleared => index.clear(),
        });
    }

    /// The engine's hashes of a prompt's full blocks.
    fn hashes(&self, prompt: &[u32]) -> Vec<EngineHash> {
        chain_tokens(99, prompt, self.size).into_iter().map(EngineHash).collect()
    }

    /// The event that stores blocks `from..` of a prompt.
    fn stored(&self, prompt: &[u32], from: usize) -> StoredBlocks {
        let hashes = self.hashes(prompt);
        let end = hashes.len() * self.size;
        StoredBlocks {
            parent: from.checked_sub(1).map(|last| hashes[last]),
            hashes: hashes[from..].to_vec(),
            tokens: prompt[from * self.size..end].to_vec(),
            block_size: self.size as u32,
            ..StoredBlocks::default()
        }
    }

    fn store(&mut self, prompt: &[u32], from: usize) {
        let event = KvEvent::Stored(self.stored(prompt, from));
        self.apply(event);
    }

    fn remove(&mut self, hashes: &[EngineHash]) {
        self.apply(KvEvent::Removed(RemovedBlocks {
            hashes: hashes.to_vec(),
            ..RemovedBlocks::default()
        }));
    }

    /// Number of a prompt's tokens in the index.
    fn known(&self, prompt: &[u32]) -> usize {
        self.known_as(chain_salt(MODEL, b""), prompt)
    }

    fn known_as(&self, salt: u64, prompt: &[u32]) -> usize {
        let chain = chain_tokens(salt, prompt, self.block);
        chain.iter().take_while(|hash| self.index.contains(hash)).count() * self.block
    }
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).collect()
}

#[test]
fn engine_blocks_of_any_size_map_to_tidegate_blocks() {
    for (size, known) in [(16, 192), (64, 192), (128, 128), (1, 192), (48, 192), (200, 192)] {
        let mut engine = EngineCache::new(size, 64, 1000);
        engine.store(&prompt(200), 0);
        assert_eq!(engine.known(&prompt(200)), known, "{size}");
        assert_eq!(engine.known(&prompt(100)), 64, "{size}");
    }
}

#[test]
fn a_longer_prompt_continues_from_its_parent_block() {
    let mut engine = EngineCache::new(16, 64, 1000);
    engine.store(&prompt(40), 0);
    assert_eq!(engine.known(&prompt(40)), 0);
    engine.store(&prompt(100), 2);
    engine.store(&prompt(130), 6);
    assert_eq!(engine.known(&prompt(200)), 128);
    let hashes = engine.hashes(&prompt(130));
    engine.remove(&hashes[7..]);
    assert_eq!(engine.known(&prompt(200)), 64);
    engine.remove(&hashes[..7]);
    assert_eq!((engine.known(&prompt(200)), engine.mirror.len()), (0, 0));
}

#[test]
fn a_block_stored_twice_must_be_removed_twice() {
    let mut engine = EngineCache::new(64, 64, 1000);
    let hashes = engine.hashes(&prompt(64));
    engine.store(&prompt(64), 0);
    engine.store(&prompt(64), 0);
    engine.remove(&hashes);
    assert_eq!(engine.known(&prompt(64)), 64);
    engine.remove(&hashes);
    assert_eq!(engine.known(&prompt(64)), 0);
}

#[test]
fn a_block_with_an_unknown_parent_is_ignored_and_counted() {
    let mut engine = EngineCache::new(16, 64, 1000);
    engine.store(&prompt(256), 4);
    assert_eq!((engine.known(&prompt(256)), engine.mirror.tally().orphans), (0, 12));
    engine.store(&prompt(256), 0);
    assert_eq!(engine.known(&prompt(256)), 256);
}

#[test]
fn clearing_the_cache_removes_all_blocks() {
    let mut engine = EngineCache::new(16, 64, 1000);
    engine.store(&prompt(256), 0);
    engine.apply(KvEvent::Cleared);
    assert!(engine.index.is_empty() && engine.mirror.is_empty());
}

#[test]
fn other_storage_tiers_and_kv_groups_are_ignored() {
    let mut engine = EngineCache::new(64, 64, 1000);
    for (medium, group, known) in
        [(Some("CPU"), None, 0), (None, Some(1), 0), (Some("GPU"), Some(0), 64)]
    {
        let stored = engine.stored(&prompt(64), 0);
        engine.apply(KvEvent::Stored(StoredBlocks {
            medium: medium.map(Box::from),
            group,
            ..stored
        }));
        assert_eq!(engine.known(&prompt(64)), known, "{medium:?} {group:?}");
    }
}

#[test]
fn adapters_and_salts_are_separated_as_in_requests() {
    let mut engine = EngineCache::new(64, 64, 1000);
    let stored = engine.stored(&prompt(128), 0);
    let key = |texts: &[&str]| BlockKeys {
        texts: texts.iter().map(|text| Box::from(*text)).collect(),
        opaque: false,
    };
    // vLLM: the adapter in every block's keys, the salt in the first block's.
    engine.apply(KvEvent::Stored(StoredBlocks {
        lora: Some("sql".into()),
        keys: vec![key(&["sql", "s\"1"]), key(&["sql"])],
        ..stored.clone()
    }));
    assert_eq!(engine.known(&prompt(128)), 0);
    assert_eq!(engine.known_as(chain_salt("sql", b"\"s\\\"1\""), &prompt(128)), 128);
    // SGLang: a member of its own.
    let mut engine = EngineCache::new(64, 64, 1000);
    engine.apply(KvEvent::Stored(StoredBlocks { cache_salt: Some("t".into()), ..stored }));
    assert_eq!(engine.known_as(chain_salt(MODEL, b"\"t\""), &prompt(128)), 128);
}

#[test]
fn an_image_ends_the_known_prefix_of_a_prompt() {
    let mut engine = EngineCache::new(64, 64, 1000);
    let stored = engine.stored(&prompt(256), 0);
    let image = BlockKeys { texts: Vec::new(), opaque: true };
    let keys = vec![BlockKeys::default(), image, BlockKeys::default(), BlockKeys::default()];
    engine.apply(KvEvent::Stored(StoredBlocks { keys, ..stored }));
    assert_eq!((engine.known(&prompt(256)), engine.mirror.tally().unreadable), (64, 3));
}

#[test]
fn an_inconsistent_event_is_ignored() {
    let mut engine = EngineCache::new(64, 64, 1000);
    let stored = engine.stored(&prompt(128), 0);
    for block_size in [0, 65, u32::MAX] {
        engine.apply(KvEvent::Stored(StoredBlocks { block_size, ..stored.clone() }));
    }
    assert_eq!((engine.mirror.len(), engine.mirror.tally().unreadable), (0, 6));
}

#[test]
fn the_limit_drops_the_oldest_blocks() {
    let mut engine = EngineCache::new(64, 64, 4);
    let prompts: Vec<Vec<u32>> = (0..4).map(|n| vec![n; 128]).collect();
    for prompt in &prompts {
        engine.store(prompt, 0);
    }
    let known: Vec<usize> = prompts.iter().map(|prompt| engine.known(prompt)).collect();
    assert_eq!(known, [0, 0, 128, 128]);
    assert_eq!((engine.mirror.len(), engine.mirror.tally().forgotten), (4, 4));
}

#[derive(Clone, Debug)]
enum Deed {
    Prompt(Vec<u32>),
    /// Removes the last block of one prompt.
    Evict(prop::sample::Index),
    Clear,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        6 => prop::collection::vec(0..2_u32, 0..40).prop_map(Deed::Prompt),
        4 => any::<prop::sample::Index>().prop_map(Deed::Evict),
        1 => Just(Deed::Clear),
    ]
}

proptest! {
    /// For an engine that evicts leaf blocks first (vLLM and SGLang), the index holds what the
    /// engine holds of any prompt, rounded down to tidegate's block size.
    #[test]
    fn the_index_equals_the_engines_cache(
        deeds in prop::collection::vec(deed(), 0..60), size in 1..9_usize, block in 1..9_usize,
    ) {
        let mut engine = EngineCache::new(size, block, 10_000);
        let mut held: BTreeSet<Vec<u32>> = BTreeSet::new();
        let mut asked: Vec<Vec<u32>> = Vec::new();
        for deed in deeds {
            match deed {
                Deed::Prompt(prompt) => {
                    let full = prompt.len() / size;
                    let new = (0..full).find(|i| !held.contains(&prompt[..(i + 1) * size]));
                    if let Some(new) = new {
                        engine.store(&prompt, new);
                        held.extend((new..full).map(|i| prompt[..(i + 1) * size].to_vec()));
                    }
                    asked.push(prompt);
                }
                Deed::Evict(which) if !held.is_empty() => {
                    let is_leaf = |block: &&Vec<u32>| {
                        !held.iter().any(|o| o.len() > block.len() && o.starts_with(block))
                    };
                    let leaves: Vec<Vec<u32>> = held.iter().filter(is_leaf).cloned().collect();
                    let leaf = which.get(&leaves).clone();
                    let hash = *engine.hashes(&leaf).last().unwrap();
                    engine.remove(&[hash]);
                    held.remove(&leaf);
                }
                Deed::Evict(_) => {}
                Deed::Clear => {
                    engine.apply(KvEvent::Cleared);
                    held.clear();
                }
            }
            prop_assert_eq!(engine.mirror.len(), held.len());
        }
        for prompt in asked {
            let full = (1..=prompt.len() / size).take_while(|i| held.contains(&prompt[..i * size]));
            let tokens = full.count() * size;
            let known = engine.known(&prompt);
            let known = known - known % size;
            prop_assert!(known <= tokens && tokens < known + block + size, "{known} of {tokens}");
            if size % block == 0 {
                prop_assert_eq!(known, tokens);
            }
        }
    }

    #[test]
    fn no_event_sequence_exceeds_the_limit(
        lengths in prop::collection::vec((0..3_u32, 0..20_usize), 0..40), blocks_max in 1..9_usize,
    ) {
        let mut engine = EngineCache::new(2, 4, blocks_max);
        for (kind, length) in lengths {
            engine.store(&vec![kind; length], 0);
            prop_assert!(engine.mirror.len() <= blocks_max);
            prop_assert!(engine.mirror.order.len() <= 2 * blocks_max + 10);
        }
    }
}
