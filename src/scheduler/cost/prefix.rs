//! Which backend holds which prompt block. Fixed memory, no lock, every method on `&self`: requests
//! on all threads ask and tell at once. Hints only: a race may lose an entry, and must never let
//! one hash answer for another.
//!
//! A block is one cache line: a word that names it and seven holders. Lines are grouped in sets of
//! four; a hash belongs to one set. A holder is a backend and how many blocks it had taken in when
//! the block was last seen there; once it has taken in its capacity since, it has evicted the
//! block, and the holder counts no more. Seeing a block again does not count as taking it in.
//!
//! The word: bits 9.. are the hash's tag, 2..9 a version that every change of the tag raises, bit 1
//! says that a holder is being written, bit 0 that the tag is. A writer sets its bit by
//! compare-and-swap and, if that fails, gives up: nobody waits. A reader reads the word, the
//! holders and the word again, and believes the holders only if tag and version stayed and bit 0
//! was never set. The hash is mixed by a bijection first; its low bits choose the set and the rest
//! are the tag, so from 2048 lines on two hashes are never confused, and below that by odds of
//! 2^-55.
//!
//! Known beforehand: SGLang's and Dynamo's radix trees (a lock or one owner, memory that grows),
//! and a concurrent hash map of lists (an allocation a block).

use crate::cost::Matches;
use crate::cost::matches::HOLDERS;
use crate::word::Word;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use tidegate_types::BackendId;

/// Backends an index knows: 24 bytes each. Those beyond are simply never found.
const BACKENDS_MAX: usize = 4096;
/// Lines a hash may be in: a set is four cache lines.
const WAYS: usize = 4;
/// Lines made at once: 4 KiB of them.
const PAGE: usize = 64;
/// A holder seen this share of its capacity ago is fresh enough: not writing keeps a system prompt
/// that every request touches from bouncing between cores.
const FRESH: u64 = 64;

/// Blocks looked up at once.
const BATCH: usize = 8;
/// Blocks in a row that the index may have lost without ending a match. A chained hash stands for
/// all blocks before it, so who holds a later one holds these; a set that overflows at a usual
/// load loses one block in thirty.
const UNKNOWN_MAX: u32 = 2;

const WRITING_TAG: u64 = 1;
const WRITING_HOLDER: u64 = 2;
const VERSION_ONE: u64 = 4;
const VERSION_MASK: u64 = 0x1FC;
const TAG_SHIFT: u32 = 9;
const COUNT_MASK: u64 = (1 << 48) - 1;

/// Which backend holds which prompt block.
pub struct PrefixIndex {
    table: Table<AtomicU64>,
}

/// The index over any kind of atomic word, so that the same code runs under the model checker.
struct Table<W> {
    /// Made when the first block comes to it: what nobody has used costs no memory.
    pages: Box<[Page<W>]>,
    /// A power of two.
    lines: usize,
    backends: Box<[Shelf<W>]>,
    set_mask: u64,
}

/// Some lines, once a block has come to one of them.
type Page<W> = OnceLock<Box<[Line<W>]>>;

/// One block and who holds it.
#[repr(align(64))]
struct Line<W> {
    word: W,
    /// Backend in the upper 16 bits, its count in the lower 48; 0 is nobody.
    holders: [W; HOLDERS],
}

/// One backend's cache as far as its age goes.
struct Shelf<W> {
    /// Blocks taken in so far. Starts at 1, so that no holder is 0.
    count: W,
    /// Blocks it can hold.
    capacity: W,
    /// Counts up to this one are forgotten.
    forgotten: W,
    /// 1: the engine itself tells what it stores and removes; nothing ages and nothing is guessed.
    followed: W,
}

/// One prompt's way through the index.
struct Walk {
    matches: Matches,
    /// Blocks walked.
    depth: u32,
    /// The last so many of them were unknown.
    unknown: u32,
    /// Every known line so far was full: a holder of this block may have been crowded out of those
    /// before it; a chain is inserted whole, so it holds them.
    crowded: bool,
}

impl PrefixIndex {
    /// An index of `lines` blocks, rounded up to a power of two: 64 bytes each. Until
    /// [`set_capacity`](Self::set_capacity) a backend is taken to hold as many.
    pub fn new(lines: usize) -> PrefixIndex {
        PrefixIndex { table: Table::new(lines, BACKENDS_MAX) }
    }

    /// `backend` was sent the blocks of `chain`, so it should hold them now. Insert again whenever
    /// it used them. Of a backend that is followed this only says which of its blocks are in use.
    pub fn insert(&self, backend: BackendId, chain: &[u64]) {
        self.table.insert(backend, chain);
    }

    /// Who holds the leading blocks of `chain`. One walk, as long as the longest match; its cost
    /// does not depend on the size of the fleet.
    pub fn matches(&self, chain: &[u64]) -> Matches {
        self.table.matches(chain)
    }

    /// `backend` keeps at most `blocks`. Engines also cache what they generate, so rather less
    /// than their KV memory. 0 makes it a holder of nothing.
    pub fn set_capacity(&self, backend: BackendId, blocks: u64) {
        if let Some(shelf) = self.table.backends.get(backend.index()) {
            Word::store(&shelf.capacity, blocks);
        }
    }

    /// From now on only [`store`](Self::store) and [`remove`](Self::remove) say what `backend`
    /// holds, or, with `false`, what it was sent, and its capacity.
    pub fn follow(&self, backend: BackendId, followed: bool) {
        if let Some(shelf) = self.table.backends.get(backend.index()) {
            Word::store(&shelf.followed, u64::from(followed));
        }
    }

    /// Does `backend` itself say what it holds?
    pub fn is_followed(&self, backend: BackendId) -> bool {
        self.table
            .backends
            .get(backend.index())
            .is_some_and(|shelf| Word::load(&shelf.followed) != 0)
    }

    /// `backend` says that it holds the block `hash`.
    pub fn store(&self, backend: BackendId, hash: u64) {
        self.table.store(backend, hash);
    }

    /// `backend` says that it holds the block `hash` no more.
    pub fn remove(&self, backend: BackendId, hash: u64) {
        self.table.remove(backend, hash);
    }

    /// `backend` has restarted and holds nothing.
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
            // Later insertions must count above what is forgotten.
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
        // A writer at work wins: the hint it leaves may be stale, as any hint may.
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

    /// The block is known: make or keep `backend` one of its holders.
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
        // From here on nobody else writes this line.
        let count = if own_age().is_some() { shelf.count.load() } else { shelf.take_in() };
        let slot = line.holders.iter().find(is_own).unwrap_or_else(|| self.stalest(line));
        slot.store(pack(backend, count));
        line.word.store(word);
    }

    /// The block is new: it takes the place of the line nobody has used for longest.
    fn replace(&self, set: &[Line<W>], tag: u64, backend: BackendId, shelf: &Shelf<W>) {
        // The word before the age: a line renamed in between then fails the swap.
        let seen = set.iter().map(|line| (line, line.word.load(), self.idle(line)));
        let free = seen.filter(|(_, word, _)| word & (WRITING_TAG | WRITING_HOLDER) == 0);
        // The first of equals: while a set is not full, a search ends early.
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
        // Found in batches: their cache misses overlap.
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

    /// A block's line and the word it had.
    fn find(&self, hash: u64) -> Option<(&Line<W>, u64)> {
        let (set, tag) = self.place(hash);
        let words = set.iter().map(|line| (line, line.word.load()));
        words.into_iter().find(|(_, word)| word >> TAG_SHIFT == tag)
    }

    /// The set a hash belongs to, empty if nothing was ever put near it, and its tag.
    fn place(&self, hash: u64) -> (&[Line<W>], u64) {
        let (page, first, tag) = self.address(hash);
        let set = page.get().map_or(&[][..], |lines| &lines[first..first + WAYS]);
        (set, tag)
    }

    /// The same for somebody who may put something there.
    fn room(&self, hash: u64) -> (&[Line<W>], u64) {
        let line = || Line { word: W::new(0), holders: std::array::from_fn(|_| W::new(0)) };
        let make = || std::iter::repeat_with(line).take(PAGE.min(self.lines)).collect();
        let (page, first, tag) = self.address(hash);
        (&page.get_or_init(make)[first..first + WAYS], tag)
    }

    /// A hash's page, the first line of its set there, and its tag.
    fn address(&self, hash: u64) -> (&Page<W>, usize, u64) {
        let mixed = mix(hash);
        let first = (mixed & self.set_mask) as usize * WAYS;
        (&self.pages[first / PAGE], first % PAGE, mixed >> TAG_SHIFT)
    }

    /// How long ago the block was seen there. `None`: nobody, or evicted or forgotten since.
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

    /// The slot of a line to give away: nobody's, else the one nearest to eviction.
    fn stalest<'a>(&self, line: &'a Line<W>) -> &'a W {
        let share = |slot: &&W| self.age(slot.load()).map_or(f64::INFINITY, Age::share);
        let stalest = line.holders.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
        stalest.unwrap_or(&line.holders[0])
    }

    /// How near a line is to being of no use: the age of its freshest holder.
    fn idle(&self, line: &Line<W>) -> f64 {
        let ages = line.holders.iter().filter_map(|holder| self.age(holder.load()));
        ages.map(Age::share).fold(f64::INFINITY, f64::min)
    }
}

fn line_of<W: Word>(set: &[Line<W>], tag: u64) -> Option<&Line<W>> {
    set.iter().find(|line| line.word.load() >> TAG_SHIFT == tag)
}

/// A consistent view of a line's holders. `None` if it is being renamed, or was since `word` was
/// read.
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
    /// One block further. Says whether to go on.
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
    /// Counts one more block in and says the count it got: 1 and up.
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
    /// 0: just seen; 1: evicted.
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

/// A bijection that spreads every bit over all (splitmix64's finalizer), so that callers' hashes
/// need not be good ones.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ hash >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let hash = (hash ^ hash >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests;
