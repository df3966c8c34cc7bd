//! Prefix index: the backends that hold each prompt block. Fixed memory, lock-free, every method on
//! `&self`: requests on all threads read and write concurrently. Entries are hints: a race may lose
//! an entry, but one hash never answers for another (`prefix/tests.rs`).
//!
//! A block is one cache line: a word that identifies it and seven holders. Lines are grouped in
//! sets of four; a hash belongs to one set. A holder is a backend and the number of blocks that the
//! backend had inserted when the block was last used there. Once the backend has inserted its
//! capacity since, it has evicted the block, and the holder is ignored. Reusing a block does not
//! count as an insertion.
//!
//! The word: bits 9.. are the hash's tag, bits 2..9 a version that every change of the tag raises,
//! bit 1 is set while a holder is written, bit 0 while the tag is written. A writer sets its bit by
//! compare-and-swap and gives up if that fails; no thread waits. A reader reads the word, the
//! holders and the word again, and uses the holders only if tag and version are unchanged and bit 0
//! was clear both times. The hash is first mixed by a bijection; its low bits select the set and
//! the rest are the tag. From 2048 lines on two hashes are therefore never confused; below that the
//! probability is 2^-55.
//!
//! Prior art: the radix trees of SGLang and Dynamo (a lock or a single owner, growing memory), and
//! a concurrent hash map of lists (one allocation per block).

use crate::cost::Matches;
use crate::cost::matches::HOLDERS;
use crate::word::Word;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use tidegate_types::{BackendId, Tokens};

/// Divisor of the KV memory that gives the capacity assumed for the prefix cache.
const PREFIX_SHARE: u64 = 2;

/// Most backends in an index: 32 bytes each. Backends beyond are never found.
const BACKENDS_MAX: usize = 4096;
/// Lines per set: four cache lines.
const WAYS: usize = 4;
/// Lines allocated at once: 4 KiB.
const PAGE: usize = 64;
/// A holder last used less than 1/64 of its capacity ago is not rewritten. This keeps the line of a
/// system prompt that every request touches from bouncing between cores.
const FRESH: u64 = 64;

/// Blocks looked up per batch.
const BATCH: usize = 8;
/// Consecutive blocks missing from the index that do not end a match. A chained hash covers all
/// earlier blocks, so a holder of a later block holds these. A full set loses one block in thirty
/// at a usual load.
const UNKNOWN_MAX: u32 = 2;

const WRITING_TAG: u64 = 1;
const WRITING_HOLDER: u64 = 2;
const VERSION_ONE: u64 = 4;
const VERSION_MASK: u64 = 0x1FC;
const TAG_SHIFT: u32 = 9;
const COUNT_MASK: u64 = (1 << 48) - 1;

/// Prefix index: a map from prompt blocks to the backends that hold them.
pub struct PrefixIndex {
    table: Table<AtomicU64>,
}

/// The index over any atomic word, so that the same code runs under the model checker.
struct Table<W> {
    /// Allocated when the first block is inserted: unused pages cost no memory.
    pages: Box<[Page<W>]>,
    /// A power of two.
    lines: usize,
    backends: Box<[Shelf<W>]>,
    set_mask: u64,
}

/// A page of lines, allocated at the first insertion.
type Page<W> = OnceLock<Box<[Line<W>]>>;

/// One block and its holders.
#[repr(align(64))]
struct Line<W> {
    word: W,
    /// Backend in the upper 16 bits, its insertion count in the lower 48; 0 is an empty slot.
    holders: [W; HOLDERS],
}

/// Insertion clock and capacity of one backend.
struct Shelf<W> {
    /// Blocks inserted so far. Starts at 1, so that no holder is 0.
    count: W,
    /// Blocks it can hold.
    capacity: W,
    /// Entries with a count up to this one are invalid (engine restart).
    forgotten: W,
    /// 1: the engine reports stored and removed blocks (KV events); entries do not age, and routed
    /// requests add none.
    followed: W,
}

/// State of one lookup.
struct Walk {
    matches: Matches,
    /// Blocks examined.
    depth: u32,
    /// Number of last blocks that were missing from the index.
    unknown: u32,
    /// Whether every line found so far was full. A holder of this block may then have been evicted
    /// from the lines of the earlier blocks; a chain is inserted whole, so it holds them.
    crowded: bool,
}

impl PrefixIndex {
    /// Returns an index of `lines` blocks, rounded up to a power of two, at 64 bytes each. The
    /// capacity of a backend is this number until [`set_capacity`](Self::set_capacity).
    pub fn new(lines: usize) -> PrefixIndex {
        PrefixIndex { table: Table::new(lines, BACKENDS_MAX) }
    }

    /// Inserts the blocks of `chain` as held by `backend`, which was sent them. Call it again at
    /// every use. For a backend with KV events (see [`follow`](Self::follow)) it only refreshes
    /// blocks that the backend has reported.
    pub fn insert(&self, backend: BackendId, chain: &[u64]) {
        self.table.insert(backend, chain);
    }

    /// Returns the backends that hold the leading blocks of `chain`. One walk as long as the
    /// longest match; the cost does not depend on the size of the fleet.
    pub fn matches(&self, chain: &[u64]) -> Matches {
        self.table.matches(chain)
    }

    /// Sets the capacity of `backend` from its KV memory, in index blocks of `block` tokens. The
    /// engine's cache uses what streams leave, and half is assumed: evictions are unknown without KV
    /// events, and a wrongly predicted hit costs more than a missed one.
    pub fn set_kv_capacity(&self, backend: BackendId, kv: Tokens, block: Tokens) {
        self.set_capacity(backend, kv.get() / PREFIX_SHARE / block.get().max(1));
    }

    /// Sets the capacity of `backend` in blocks. Engines also cache generated tokens, so use less
    /// than their KV memory. At 0 the backend holds nothing.
    pub fn set_capacity(&self, backend: BackendId, blocks: u64) {
        if let Some(shelf) = self.table.backends.get(backend.index()) {
            Word::store(&shelf.capacity, blocks);
        }
    }

    /// Sets the source of the entries of `backend`: with `true` only [`store`](Self::store) and
    /// [`remove`](Self::remove) (the engine's KV events), with `false` the requests it was sent,
    /// and its capacity.
    pub fn follow(&self, backend: BackendId, followed: bool) {
        if let Some(shelf) = self.table.backends.get(backend.index()) {
            Word::store(&shelf.followed, u64::from(followed));
        }
    }

    /// Returns whether the entries of `backend` come from its KV events.
    pub fn is_followed(&self, backend: BackendId) -> bool {
        self.table
            .backends
            .get(backend.index())
            .is_some_and(|shelf| Word::load(&shelf.followed) != 0)
    }

    /// Records an event: `backend` holds the block `hash`.
    pub fn store(&self, backend: BackendId, hash: u64) {
        self.table.store(backend, hash);
    }

    /// Records an event: `backend` has removed the block `hash`.
    pub fn remove(&self, backend: BackendId, hash: u64) {
        self.table.remove(backend, hash);
    }

    /// Drops all entries of `backend`, for example after a restart.
    pub fn forget(&self, backend: BackendId) {
        self.table.forget(backend);
    }
}

impl std::fmt::Debug for PrefixIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrefixIndex").field("lines", &self.table.lines).finish()
    }
}

// === impl Table ===

impl<W: Word> Table<W> {
    fn new(lines: usize, backends: usize) -> Table<W> {
        let lines = lines.max(WAYS).next_power_of_two();
        let shelf = || Shelf {
            count: W::new(1),
            capacity: W::new(lines as u64),
            forgotten: W::new(0),
            followed: W::new(0),
        };
        Table {
            pages: std::iter::repeat_with(OnceLock::new).take(lines.div_ceil(PAGE)).collect(),
            lines,
            backends: std::iter::repeat_with(shelf).take(backends).collect(),
            set_mask: (lines / WAYS) as u64 - 1,
        }
    }

    fn forget(&self, backend: BackendId) {
        if let Some(shelf) = self.backends.get(backend.index()) {
            // Later insertions must have a higher count than the invalid entries.
            shelf.forgotten.store(shelf.count.fetch_add(1));
        }
    }

    fn insert(&self, backend: BackendId, chain: &[u64]) {
        let Some(shelf) = self.backends.get(backend.index()) else { return };
        let told = shelf.followed.load() != 0;
        for hash in chain {
            let (set, tag) = self.room(*hash);
            match line_of(set, tag) {
                Some(line) if !told || self.holds(line, backend) => {
                    self.touch(line, tag, backend, shelf);
                }
                None if !told => self.replace(set, tag, backend, shelf),
                _ => {}
            }
        }
    }

    fn store(&self, backend: BackendId, hash: u64) {
        let Some(shelf) = self.backends.get(backend.index()) else { return };
        let (set, tag) = self.room(hash);
        match line_of(set, tag) {
            Some(line) => self.touch(line, tag, backend, shelf),
            None => self.replace(set, tag, backend, shelf),
        }
    }

    fn remove(&self, backend: BackendId, hash: u64) {
        let (set, tag) = self.place(hash);
        let Some(line) = line_of(set, tag) else { return };
        let is_own = |slot: &&W| slot.load() != 0 && backend_of(slot.load()) == backend;
        let word = line.word.load();
        let busy = word & (WRITING_TAG | WRITING_HOLDER) != 0;
        // A concurrent writer has priority; the entry it leaves may be stale, which a hint may be.
        if busy || word >> TAG_SHIFT != tag || !line.word.swap_if(word, word | WRITING_HOLDER) {
            return;
        }
        if let Some(slot) = line.holders.iter().find(is_own) {
            slot.store(0);
        }
        line.word.store(word);
    }

    fn holds(&self, line: &Line<W>, backend: BackendId) -> bool {
        let mut holders = line.holders.iter().map(Word::load);
        holders.any(|holder| backend_of(holder) == backend && self.age(holder).is_some())
    }

    /// The block is in the index: adds `backend` to its holders or refreshes it.
    fn touch(&self, line: &Line<W>, tag: u64, backend: BackendId, shelf: &Shelf<W>) {
        let is_own = |slot: &&W| slot.load() != 0 && backend_of(slot.load()) == backend;
        let own_age = || self.age(line.holders.iter().find(is_own)?.load());
        let fresh = shelf.capacity.load() / FRESH;
        if own_age().is_some_and(|age| age.taken_in <= fresh) {
            return;
        }
        let word = line.word.load();
        let busy = word & (WRITING_TAG | WRITING_HOLDER) != 0;
        if busy || word >> TAG_SHIFT != tag || !line.word.swap_if(word, word | WRITING_HOLDER) {
            return;
        }
        // From here on no other thread writes this line.
        let count = if own_age().is_some() { shelf.count.load() } else { shelf.take_in() };
        let slot = line.holders.iter().find(is_own).unwrap_or_else(|| self.stalest(line));
        slot.store(pack(backend, count));
        line.word.store(word);
    }

    /// The block is not in the index: it replaces the line of its set that was unused for longest.
    fn replace(&self, set: &[Line<W>], tag: u64, backend: BackendId, shelf: &Shelf<W>) {
        // The word is read before the age: if the line is renamed in between, the swap fails.
        let seen = set.iter().map(|line| (line, line.word.load(), self.idle(line)));
        let free = seen.filter(|(_, word, _)| word & (WRITING_TAG | WRITING_HOLDER) == 0);
        // Of equal lines the first is taken: while a set is not full, a search ends early.
        let Some((line, word, _)) = free.min_by(|a, b| b.2.total_cmp(&a.2)) else { return };
        let version = word.wrapping_add(VERSION_ONE) & VERSION_MASK;
        let renamed = tag << TAG_SHIFT | version;
        if !line.word.swap_if(word, renamed | WRITING_TAG) {
            return;
        }
        for holder in &line.holders[1..] {
            holder.store(0);
        }
        line.holders[0].store(pack(backend, shelf.take_in()));
        line.word.store(renamed);
    }

    fn matches(&self, chain: &[u64]) -> Matches {
        let mut walk = Walk::default();
        // Lookups run in batches so that their cache misses overlap.
        for hashes in chain.chunks(BATCH) {
            let mut found = [None; BATCH];
            for (slot, hash) in found.iter_mut().zip(hashes) {
                *slot = self.find(*hash);
            }
            for found in &found[..hashes.len()] {
                let holders = found.and_then(|(line, word)| holders(line, word));
                if !walk.step(holders, |holder| self.age(holder).is_some()) {
                    return walk.end();
                }
            }
        }
        walk.end()
    }

    /// Returns a block's line and the word it had.
    fn find(&self, hash: u64) -> Option<(&Line<W>, u64)> {
        let (set, tag) = self.place(hash);
        let words = set.iter().map(|line| (line, line.word.load()));
        words.into_iter().find(|(_, word)| word >> TAG_SHIFT == tag)
    }

    /// Returns the set and the tag of a hash; the set is empty if its page is not allocated.
    fn place(&self, hash: u64) -> (&[Line<W>], u64) {
        let (page, first, tag) = self.address(hash);
        let set = page.get().map_or(&[][..], |lines| &lines[first..first + WAYS]);
        (set, tag)
    }

    /// Returns the set and the tag of a hash, and allocates the page if needed.
    fn room(&self, hash: u64) -> (&[Line<W>], u64) {
        let line = || Line { word: W::new(0), holders: std::array::from_fn(|_| W::new(0)) };
        let make = || std::iter::repeat_with(line).take(PAGE.min(self.lines)).collect();
        let (page, first, tag) = self.address(hash);
        (&page.get_or_init(make)[first..first + WAYS], tag)
    }

    /// Returns a hash's page, the first line of its set there, and its tag.
    fn address(&self, hash: u64) -> (&Page<W>, usize, u64) {
        let mixed = mix(hash);
        let first = (mixed & self.set_mask) as usize * WAYS;
        (&self.pages[first / PAGE], first % PAGE, mixed >> TAG_SHIFT)
    }

    /// Returns the age of a holder entry; `None` if the slot is empty, or the entry evicted or
    /// invalid.
    fn age(&self, holder: u64) -> Option<Age> {
        if holder == 0 {
            return None;
        }
        let shelf = self.backends.get(backend_of(holder).index())?;
        let count = holder & COUNT_MASK;
        let taken_in = (shelf.count.load() & COUNT_MASK).saturating_sub(count);
        let capacity = shelf.capacity.load();
        let kept = taken_in < capacity || shelf.followed.load() != 0;
        let held = count > shelf.forgotten.load() && kept;
        held.then_some(Age { taken_in, capacity })
    }

    /// Returns the slot to replace: an empty one, else the one nearest to eviction.
    fn stalest<'a>(&self, line: &'a Line<W>) -> &'a W {
        let share = |slot: &&W| self.age(slot.load()).map_or(f64::INFINITY, Age::share);
        let stalest = line.holders.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
        stalest.unwrap_or(&line.holders[0])
    }

    /// Returns the age of the freshest holder of a line, as a share of capacity; infinite without a
    /// valid holder.
    fn idle(&self, line: &Line<W>) -> f64 {
        let ages = line.holders.iter().filter_map(|holder| self.age(holder.load()));
        ages.map(Age::share).fold(f64::INFINITY, f64::min)
    }
}

fn line_of<W: Word>(set: &[Line<W>], tag: u64) -> Option<&Line<W>> {
    set.iter().find(|line| line.word.load() >> TAG_SHIFT == tag)
}

/// Returns a consistent view of a line's holders; `None` if the line is being renamed, or was since
/// `word` was read.
fn holders<W: Word>(line: &Line<W>, word: u64) -> Option<[u64; HOLDERS]> {
    let holders = std::array::from_fn(|i| line.holders[i].load());
    let same = |word: u64| word & !WRITING_HOLDER;
    let settled = word & WRITING_TAG == 0 && same(line.word.load()) == same(word);
    settled.then_some(holders)
}

// === impl Walk ===

impl Default for Walk {
    fn default() -> Walk {
        Walk { matches: Matches::default(), depth: 0, unknown: 0, crowded: true }
    }
}

impl Walk {
    /// Advances the walk by one block. Returns whether to continue.
    fn step(&mut self, holders: Option<[u64; HOLDERS]>, is_held: impl Fn(u64) -> bool) -> bool {
        self.depth += 1;
        let Some(holders) = holders else {
            self.unknown += 1;
            return self.unknown <= UNKNOWN_MAX;
        };
        let reached = self.depth - 1 - self.unknown;
        let (mut alive, mut longer) = (0, false);
        for holder in holders.into_iter().filter(|holder| is_held(*holder)) {
            alive += 1;
            let backend = backend_of(holder);
            let held_before = reached > 0 && self.matches.blocks_on(backend) == reached;
            if held_before || self.crowded {
                self.matches.set(backend, self.depth);
                longer = true;
            }
        }
        self.crowded &= alive == HOLDERS;
        self.unknown = 0;
        longer
    }

    fn end(mut self) -> Matches {
        self.matches.sort();
        self.matches
    }
}

impl<W: Word> Shelf<W> {
    /// Counts an inserted block and returns its count, at least 1.
    fn take_in(&self) -> u64 {
        self.count.fetch_add(1) + 1
    }
}

#[derive(Clone, Copy)]
struct Age {
    taken_in: u64,
    capacity: u64,
}

impl Age {
    /// Age as a share of capacity: 0 is just used, 1 is evicted.
    fn share(self) -> f64 {
        self.taken_in as f64 / self.capacity as f64
    }
}

fn backend_of(holder: u64) -> BackendId {
    BackendId((holder >> 48) as u16)
}

fn pack(backend: BackendId, count: u64) -> u64 {
    u64::from(backend.0) << 48 | count & COUNT_MASK
}

/// A bijection in which every input bit affects all output bits (splitmix64's finalizer), so that
/// the callers' hashes need not be well distributed.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ hash >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let hash = (hash ^ hash >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests;
