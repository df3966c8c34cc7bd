//! One engine's prefix cache as its events tell it, translated into tidegate's own chained block
//! hashes: whatever hash an engine uses and however large its blocks are, the tokens in its events
//! say which of a request's blocks it holds.
//!
//! Bounded: at most as many blocks as were allowed; the one stored longest ago goes first, which is
//! an engine's own order but for blocks that are in use. A block whose parent is unknown (it was
//! stored before anyone listened) cannot be placed in a prompt and is left out.
//!
//! An engine's block may be stored more than once (two requests that computed it at the same time,
//! each of which is removed by itself), so stores are counted. So are the engine's blocks behind one
//! of ours: two that are larger than ours may begin alike.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tidegate_scheduler::cost::{chain_salt, chain_tokens};

use super::event::{EngineHash, KvEvent, RemovedBlocks, StoredBlocks};

/// What changes in an index of tidegate's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The engine now holds this block.
    Held(u64),
    /// It holds it no more.
    Gone(u64),
    /// It holds nothing.
    Cleared,
}

/// What the events were, and what of them was of no use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The engine's blocks stored.
    pub stored: u64,
    /// The engine's blocks removed.
    pub removed: u64,
    /// Stored after a block that is unknown.
    pub orphans: u64,
    /// Blocks whose tokens do not say what is in them, and events that contradict themselves.
    pub unreadable: u64,
    /// Forgotten for the bound's sake.
    pub forgotten: u64,
}

/// One engine's prefix cache.
#[derive(Debug)]
pub struct KvMirror {
    /// The model under whose name requests without an adapter come.
    model: Box<str>,
    /// Tokens of tidegate's blocks.
    block: usize,
    /// Most engine blocks remembered.
    blocks_max: usize,
    nodes: BTreeMap<EngineHash, Node>,
    /// tidegate's blocks, and in how many of the engine's each ends.
    held: BTreeMap<u64, u32>,
    /// Blocks in the order in which they were first stored; some of them are gone.
    order: VecDeque<(u64, EngineHash)>,
    /// Blocks ever stored.
    births: u64,
    tally: Tally,
}

/// One of the engine's blocks.
#[derive(Debug)]
struct Node {
    /// The tokens of its event, and before them its prompt's tokens since the last boundary of
    /// tidegate's blocks.
    run: Arc<[u32]>,
    /// Where its own tokens end in the run.
    end: u32,
    /// How many they are.
    size: u32,
    /// How many tokens the prompt has up to its end, modulo tidegate's block.
    tail: u32,
    /// tidegate's hash at the last boundary before its own tokens; the salt if there is none.
    before: u64,
    born: u64,
    /// How often it is stored.
    copies: u32,
}

/// Where a prompt stands at an engine block's end.
struct Position {
    /// tidegate's hash at the last boundary.
    hash: u64,
    /// Tokens since.
    tail: Box<[u32]>,
}

impl KvMirror {
    /// An empty cache of an engine whose base model is called `model`, for tidegate blocks of
    /// `block` tokens (at least 1). At most `blocks_max` of the engine's blocks are remembered,
    /// about 80 bytes and four more a token each.
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

    /// Take in one event; `change` hears what it means for tidegate's blocks.
    pub fn apply(&mut self, event: &KvEvent, change: &mut impl FnMut(Change)) {
        match event {
            KvEvent::Stored(stored) if counts(stored.medium.as_deref(), stored.group) => {
                self.store(stored, change);
            }
            KvEvent::Removed(removed) if counts(removed.medium.as_deref(), removed.group) => {
                self.remove(removed, change);
            }
            KvEvent::Cleared => {
                self.clear();
                change(Change::Cleared);
            }
            KvEvent::Stored(_) | KvEvent::Removed(_) | KvEvent::Other => {}
        }
    }

    /// The engine has restarted, or its story was lost: nothing is known.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.held.clear();
        self.order.clear();
    }

    /// The engine's blocks known now.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Is none known?
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What the events were so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    fn store(&mut self, stored: &StoredBlocks, change: &mut impl FnMut(Change)) {
        let blocks = stored.hashes.len();
        let size = stored.block_size as usize;
        // The engine may know tokens beyond its last full block.
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
                // Those that follow hang on it.
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

    /// Where the first of these blocks begins. `None`: who knows.
    fn start(&self, stored: &StoredBlocks) -> Option<Position> {
        match stored.parent {
            Some(parent) => self.nodes.get(&parent).map(|node| node.position(self.block)),
            None => Some(Position { hash: self.salt(stored), tail: Box::default() }),
        }
    }

    /// As for a request for the same model or adapter with the same `cache_salt`.
    fn salt(&self, stored: &StoredBlocks) -> u64 {
        let model = stored.lora.as_deref().unwrap_or(&self.model);
        let keys = stored.keys.first().map(|keys| keys.texts.as_slice()).unwrap_or_default();
        let told =
            keys.iter().map(|text| &**text).find(|text| Some(*text) != stored.lora.as_deref());
        let json = match stored.cache_salt.as_deref().or(told) {
            // A string is always JSON.
            Some(salt) => serde_json::to_vec(salt).unwrap_or_default(),
            None => Vec::new(),
        };
        chain_salt(model, &json)
    }

    fn insert(&mut self, hash: EngineHash, node: Node, change: &mut impl FnMut(Change)) {
        self.births += 1;
        if let Some(known) = self.nodes.get_mut(&hash) {
            known.copies = known.copies.saturating_add(1);
            return;
        }
        for ours in node.completed(self.block) {
            let count = self.held.entry(ours).or_default();
            *count += 1;
            if *count == 1 {
                change(Change::Held(ours));
            }
        }
        self.order.push_back((node.born, hash));
        self.nodes.insert(hash, node);
    }

    fn remove(&mut self, removed: &RemovedBlocks, change: &mut impl FnMut(Change)) {
        for hash in &removed.hashes {
            let Some(node) = self.nodes.get_mut(hash) else { continue };
            self.tally.removed += 1;
            node.copies -= 1;
            if node.copies == 0 {
                self.drop_node(*hash, change);
            }
        }
    }

    fn drop_node(&mut self, hash: EngineHash, change: &mut impl FnMut(Change)) {
        let Some(node) = self.nodes.remove(&hash) else { return };
        for ours in node.completed(self.block) {
            let Some(count) = self.held.get_mut(&ours) else { continue };
            *count -= 1;
            if *count == 0 {
                self.held.remove(&ours);
                change(Change::Gone(ours));
            }
        }
    }

    /// Forget what was stored first, and the queue's entries for what is gone.
    fn keep_bound(&mut self, change: &mut impl FnMut(Change)) {
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
    /// tidegate's blocks that end within this one, in order.
    fn completed(&self, block: usize) -> impl Iterator<Item = u64> {
        let boundary = (self.end - self.tail) as usize;
        let began = (self.end - self.size) as usize;
        // The run begins at a boundary.
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

/// Only what is in GPU memory is there at once, and of a hybrid model's groups the first stands
/// for all.
fn counts(medium: Option<&str>, group: Option<u32>) -> bool {
    matches!(medium, None | Some("GPU")) && matches!(group, None | Some(0))
}

/// Do the tokens not say what is in the block? In the first block of a prompt one string may be the
/// `cache_salt`; further on there is none.
fn is_opaque(stored: &StoredBlocks, block: usize) -> bool {
    let Some(keys) = stored.keys.get(block) else { return false };
    let others = keys.texts.iter().filter(|text| Some(&***text) != stored.lora.as_deref());
    let allowed = usize::from(block == 0 && stored.parent.is_none());
    keys.opaque || others.count() > allowed
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
