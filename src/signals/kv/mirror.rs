//! Mirror of one engine's prefix cache, translated into tidegate's chained block hashes. The tokens
//! in the events determine tidegate's hashes, whatever hash function and block size the engine
//! uses.
//!
//! The mirror is bounded: above the limit the block stored longest ago is dropped, which is the
//! engines' own eviction order except for blocks in use. A block with an unknown parent (stored
//! before the subscription) has no position in a prompt and is ignored.
//!
//! Blocks are reference-counted: two requests can compute and store the same block, and each copy
//! is removed separately. tidegate's blocks are counted too, because several larger engine blocks
//! can start with the same one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tidegate_scheduler::cost::{chain_salt, chain_tokens};

use super::event::{EngineHash, KvEvent, RemovedBlocks, StoredBlocks};

/// A change of tidegate's prefix index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockChange {
    /// The engine holds this block.
    Held(u64),
    /// The engine no longer holds this block.
    Gone(u64),
    /// The engine holds no block.
    Cleared,
}

/// Counters of processed and ignored blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Engine blocks stored.
    pub stored: u64,
    /// Engine blocks removed.
    pub removed: u64,
    /// Engine blocks ignored because their parent is unknown.
    pub orphans: u64,
    /// Engine blocks ignored because their tokens do not determine their content, or because the
    /// event is inconsistent.
    pub unreadable: u64,
    /// Engine blocks dropped by the size limit.
    pub forgotten: u64,
}

/// Mirror of one engine's prefix cache.
///
/// ```
/// use tidegate_signals::kv::event::{EngineHash, KvEvent, StoredBlocks};
/// use tidegate_signals::kv::mirror::{BlockChange, KvMirror};
///
/// // The engine's blocks have 4 tokens, tidegate's 2.
/// let mut mirror = KvMirror::new("m", 2, 1000);
/// let mut held = 0;
/// let tokens = vec![1, 2, 3, 4];
/// let hashes = vec![EngineHash(7)];
/// let stored = StoredBlocks { hashes, tokens, block_size: 4, ..StoredBlocks::default() };
/// mirror.apply(&KvEvent::Stored(stored), &mut |change| {
///     held += usize::from(matches!(change, BlockChange::Held(_)));
/// });
/// assert_eq!((mirror.len(), held), (1, 2));
/// ```
#[derive(Debug)]
pub struct KvMirror {
    /// Model name of requests without an adapter.
    model: Box<str>,
    /// Tokens per tidegate block.
    block: usize,
    /// Limit of engine blocks.
    blocks_max: usize,
    nodes: BTreeMap<EngineHash, Node>,
    /// tidegate's blocks, each with the number of engine blocks in which it ends.
    held: BTreeMap<u64, u32>,
    /// Engine blocks in the order of their first store; may contain removed ones.
    order: VecDeque<(u64, EngineHash)>,
    /// Count of engine blocks ever stored.
    births: u64,
    tally: Tally,
}

/// One engine block.
#[derive(Debug)]
struct Node {
    /// The tokens of its event, preceded by the prompt's tokens since the last boundary of
    /// tidegate's blocks.
    run: Arc<[u32]>,
    /// End of the block's tokens in `run`.
    end: u32,
    /// Number of the block's tokens.
    size: u32,
    /// Prompt length at the block's end, modulo tidegate's block size.
    tail: u32,
    /// tidegate's hash at the last boundary before the block's tokens; the salt if there is none.
    before: u64,
    born: u64,
    /// Reference count.
    copies: u32,
}

/// Position of a prompt at the end of an engine block.
struct Position {
    /// tidegate's hash at the last boundary.
    hash: u64,
    /// Tokens since that boundary.
    tail: Box<[u32]>,
}

impl KvMirror {
    /// Creates an empty mirror for the base model `model` and tidegate blocks of `block` tokens (at
    /// least 1). It holds at most `blocks_max` engine blocks, at about 80 bytes plus 4 per token
    /// each.
    pub fn new(model: &str, block: usize, blocks_max: usize) -> KvMirror {
        KvMirror {
            model: model.into(),
            block: block.max(1),
            blocks_max: blocks_max.max(1),
            nodes: BTreeMap::new(),
            held: BTreeMap::new(),
            order: VecDeque::new(),
            births: 0,
            tally: Tally::default(),
        }
    }

    /// Applies one event; `change` receives the resulting changes of tidegate's blocks.
    pub fn apply(&mut self, event: &KvEvent, change: &mut impl FnMut(BlockChange)) {
        match event {
            KvEvent::Stored(stored) if counts(stored.medium.as_deref(), stored.group) => {
                self.store(stored, change);
            }
            KvEvent::Removed(removed) if counts(removed.medium.as_deref(), removed.group) => {
                self.remove(removed, change);
            }
            KvEvent::Cleared => {
                self.clear();
                change(BlockChange::Cleared);
            }
            KvEvent::Stored(_) | KvEvent::Removed(_) | KvEvent::Other => {}
        }
    }

    /// Empties the mirror, after a restart of the engine or a gap in its events.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.held.clear();
        self.order.clear();
    }

    /// Number of engine blocks held.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether no engine block is held.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Counters since creation.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    fn store(&mut self, stored: &StoredBlocks, change: &mut impl FnMut(BlockChange)) {
        let blocks = stored.hashes.len();
        let size = stored.block_size as usize;
        // An event may contain tokens beyond the last full block.
        if size == 0 || blocks.checked_mul(size).is_none_or(|all| all > stored.tokens.len()) {
            self.tally.unreadable += blocks as u64;
            return;
        }
        let Some(start) = self.start(stored) else {
            self.tally.orphans += blocks as u64;
            return;
        };
        let tail = start.tail.len();
        let tokens = &stored.tokens[..blocks * size];
        let run: Arc<[u32]> = start.tail.iter().chain(tokens).copied().collect();
        let mut before = start.hash;
        for (i, hash) in stored.hashes.iter().enumerate() {
            if is_opaque(stored, i) {
                // The following blocks depend on this one.
                self.tally.unreadable += (blocks - i) as u64;
                return;
            }
            let end = tail + (i + 1) * size;
            let node = Node {
                run: Arc::clone(&run),
                end: end as u32,
                size: size as u32,
                tail: (end % self.block) as u32,
                before,
                born: self.births,
                copies: 1,
            };
            let first = before;
            before = node.completed(self.block).last().unwrap_or(first);
            self.insert(*hash, node, change);
        }
        self.tally.stored += blocks as u64;
        self.keep_bound(change);
    }

    /// Returns the position of the first block; `None` if its parent is unknown.
    fn start(&self, stored: &StoredBlocks) -> Option<Position> {
        match stored.parent {
            Some(parent) => self.nodes.get(&parent).map(|node| node.position(self.block)),
            None => Some(Position { hash: self.salt(stored), tail: Box::default() }),
        }
    }

    /// Salt as for a request with the same model or adapter and the same `cache_salt`.
    fn salt(&self, stored: &StoredBlocks) -> u64 {
        let model = stored.lora.as_deref().unwrap_or(&self.model);
        let keys = stored.keys.first().map(|keys| keys.texts.as_slice()).unwrap_or_default();
        let vllm_salt =
            keys.iter().map(|text| &**text).find(|text| Some(*text) != stored.lora.as_deref());
        let json = match stored.cache_salt.as_deref().or(vllm_salt) {
            // A string always serialises.
            Some(salt) => serde_json::to_vec(salt).unwrap_or_default(),
            None => Vec::new(),
        };
        chain_salt(model, &json)
    }

    fn insert(&mut self, hash: EngineHash, node: Node, change: &mut impl FnMut(BlockChange)) {
        self.births += 1;
        if let Some(known) = self.nodes.get_mut(&hash) {
            known.copies = known.copies.saturating_add(1);
            return;
        }
        for ours in node.completed(self.block) {
            let count = self.held.entry(ours).or_default();
            *count += 1;
            if *count == 1 {
                change(BlockChange::Held(ours));
            }
        }
        self.order.push_back((node.born, hash));
        self.nodes.insert(hash, node);
    }

    fn remove(&mut self, removed: &RemovedBlocks, change: &mut impl FnMut(BlockChange)) {
        for hash in &removed.hashes {
            let Some(node) = self.nodes.get_mut(hash) else { continue };
            self.tally.removed += 1;
            node.copies -= 1;
            if node.copies == 0 {
                self.drop_node(*hash, change);
            }
        }
    }

    fn drop_node(&mut self, hash: EngineHash, change: &mut impl FnMut(BlockChange)) {
        let Some(node) = self.nodes.remove(&hash) else { return };
        for ours in node.completed(self.block) {
            let Some(count) = self.held.get_mut(&ours) else { continue };
            *count -= 1;
            if *count == 0 {
                self.held.remove(&ours);
                change(BlockChange::Gone(ours));
            }
        }
    }

    /// Drops the oldest blocks above the limit, and queue entries of removed blocks.
    fn keep_bound(&mut self, change: &mut impl FnMut(BlockChange)) {
        while self.nodes.len() > self.blocks_max {
            let Some((born, hash)) = self.order.pop_front() else { return };
            if self.nodes.get(&hash).is_some_and(|node| node.born == born) {
                self.tally.forgotten += 1;
                self.drop_node(hash, change);
            }
        }
        if self.order.len() > 2 * self.blocks_max {
            let nodes = &self.nodes;
            let known = |(born, hash): &(u64, EngineHash)| {
                nodes.get(hash).is_some_and(|node| node.born == *born)
            };
            self.order.retain(known);
        }
    }
}

impl Node {
    /// tidegate's blocks that end within this engine block, in order.
    fn completed(&self, block: usize) -> impl Iterator<Item = u64> {
        let boundary = (self.end - self.tail) as usize;
        let began = (self.end - self.size) as usize;
        // `run` starts at a boundary.
        let first = began - began % block;
        let tokens = self.run.get(first..boundary).unwrap_or_default();
        chain_tokens(self.before, tokens, block).into_iter()
    }

    fn position(&self, block: usize) -> Position {
        let (end, tail) = (self.end as usize, self.tail as usize);
        let hash = self.completed(block).last().unwrap_or(self.before);
        Position { hash, tail: self.run[end - tail..end].into() }
    }
}

/// Only blocks in GPU memory count, and of a hybrid model's KV groups only the first.
fn counts(medium: Option<&str>, group: Option<u32>) -> bool {
    matches!(medium, None | Some("GPU")) && matches!(group, None | Some(0))
}

/// Returns whether the tokens do not determine the block's content. One string is allowed in the
/// first block of a prompt: the `cache_salt`.
fn is_opaque(stored: &StoredBlocks, block: usize) -> bool {
    let Some(keys) = stored.keys.get(block) else { return false };
    let others = keys.texts.iter().filter(|text| Some(&***text) != stored.lora.as_deref());
    let allowed = usize::from(block == 0 && stored.parent.is_none());
    keys.opaque || others.count() > allowed
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
