//! Prefix index: the backends that hold each prompt block, in a fixed amount of memory. It is
//! lock-free: requests on all threads read and write concurrently. Entries are hints: a race may
//! lose an entry, but a lookup of one hash never returns the holders of another
//! (`prefix/tests.rs`).
//!
//! The index is a 4-way set-associative table. An entry is one cache line of 64 bytes: a word that
//! identifies the block, and seven holders. A holder is a backend and the number of blocks that it
//! had inserted when the block was last used there. A backend that has since inserted as many
//! blocks as its capacity is assumed to have evicted the block, and the holder is ignored. Reuse of
//! a block does not count as an insertion.
//!
//! Bits of the word: 9 and above are the tag of the hash; 2 to 8 are a version, which each change of
//! the tag increments; bit 1 is set while a holder is written, and bit 0 while the tag is written. A
//! writer sets its bit by compare-and-swap and gives up if that fails; no thread waits. A reader
//! reads the word, the holders and the word again (a sequence lock), and uses the holders only if
//! tag and version are unchanged and bit 0 was clear both times. A bijection mixes the hash; its low
//! bits select the set, and the other bits are the tag. From 2,048 lines on, two hashes are
//! therefore never confused; with fewer lines the probability is 2^-55.
//!
//! Prior art: the radix trees of SGLang and Dynamo (a lock or a single owner, growing memory), and
//! a concurrent hash map of lists (one allocation per block).

use crate::cost::Matches;
use crate::cost::matches::HOLDERS;
use crate::shared_u64::SharedU64;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use tidegate_types::{BACKENDS_MAX, BackendId, Tokens};

/// Divisor of the KV memory that gives the capacity assumed for the prefix cache.
const PREFIX_SHARE: u64 = 2;

/// Lines per set: four cache lines.
const WAYS: usize = 4;
/// Lines allocated at once: 4 KiB.
const PAGE: usize = 64;
/// A holder that was used within the last 1/64 of its backend's capacity is not rewritten. Otherwise
/// the line of a shared system prompt would move between the caches of all cores.
const REFRESH_SHARE: u64 = 64;

/// Blocks looked up per batch.
const BATCH: usize = 8;
/// Most consecutive missing blocks that do not end a match. A chained hash covers all earlier
/// blocks, so a backend that holds a later block holds the missing ones. Set conflicts lose one
/// block in thirty at a usual load.
const MISSING_MAX: u32 = 2;

const WRITING_TAG: u64 = 1;
const WRITING_HOLDER: u64 = 2;
const VERSION_ONE: u64 = 4;
const VERSION_MASK: u64 = 0x1FC;
const TAG_SHIFT: u32 = 9;
const COUNT_MASK: u64 = (1 << 48) - 1;

/// Prefix index: a map from prompt blocks to the backends that hold them.
pub struct PrefixIndex {
    table: LineTable<AtomicU64>,
}

/// The index, generic over its atomics, so that the same code runs under the model checker.
struct LineTable<W> {
    /// Allocated when the first block is inserted: unused pages cost no memory.
    pages: Box<[Page<W>]>,
    /// A power of two.
    lines: usize,
    backends: Box<[BackendClock<W>]>,
    set_mask: u64,
}

/// A page of lines, allocated at the first insertion.
type Page<W> = OnceLock<Box<[CacheLine<W>]>>;

/// One block and its holders.
#[repr(align(64))]
struct CacheLine<W> {
    word: W,
    /// Backend in the upper 16 bits, its insertion count in the lower 48; 0 is an empty slot.
    holders: [W; HOLDERS],
}

/// Insertion clock and capacity of one backend.
struct BackendClock<W> {
    /// Blocks inserted so far. Starts at 1, so that no holder is 0.
    count: W,
    /// Blocks it can hold.
    capacity: W,
    /// Entries with a count up to this one are invalid: they are from before an engine restart.
    invalid_up_to: W,
    /// 1: the engine reports stored and removed blocks (KV events); entries do not age, and routed
    /// requests add none.
    kv_events: W,
}

/// State of one lookup.
struct Lookup {
    matches: Matches,
    /// Blocks examined.
    depth: u32,
    /// Number of consecutive blocks, the last examined one included, that were missing from the
    /// index.
    missing: u32,
    /// Whether every line found so far was full. A backend that holds this block may then have been
    /// displaced from the lines of the earlier blocks. It holds them, because chains are inserted
    /// as a whole.
    all_full: bool,
}

impl PrefixIndex {
    /// Returns an index of `lines` blocks, rounded up to a power of two, at 64 bytes each. The
    /// capacity of a backend is this number until [`set_capacity`](Self::set_capacity).
    pub fn new(lines: usize) -> PrefixIndex {
        PrefixIndex { table: LineTable::new(lines, BACKENDS_MAX) }
    }

    /// Inserts the blocks of `chain`, which were sent to `backend`. Call it again at every use. For
    /// a backend with KV events (see [`set_kv_events`](Self::set_kv_events)) it only refreshes
    /// blocks that the backend has reported.
    pub fn insert(&self, backend: BackendId, chain: &[u64]) {
        self.table.insert(backend, chain);
    }

    /// Returns the backends that hold the leading blocks of `chain`. The cost is proportional to the
    /// longest match and independent of the size of the fleet.
    pub fn matches(&self, chain: &[u64]) -> Matches {
        self.table.matches(chain)
    }

    /// Sets the capacity of `backend` from its KV memory, in index blocks of `block` tokens. An
    /// engine caches prefixes in the memory that its streams leave free. Half of the memory is
    /// assumed: evictions are unknown without KV events, and a wrongly predicted hit costs more than
    /// a missed one.
    pub fn set_kv_capacity(&self, backend: BackendId, kv: Tokens, block: Tokens) {
        self.set_capacity(backend, kv.get() / PREFIX_SHARE / block.get().max(1));
    }

    /// Sets the capacity of `backend` in blocks. Engines also cache generated tokens, so use less
    /// than their KV memory. At 0 the backend holds nothing.
    pub fn set_capacity(&self, backend: BackendId, blocks: u64) {
        if let Some(clock) = self.table.backends.get(backend.index()) {
            SharedU64::store(&clock.capacity, blocks);
        }
    }

    /// Sets the source of the entries of `backend`. `true`: only the engine's KV events
    /// ([`store`](Self::store) and [`remove`](Self::remove)). `false`: the requests that were sent
    /// to it, which age by its capacity.
    pub fn set_kv_events(&self, backend: BackendId, kv_events: bool) {
        if let Some(clock) = self.table.backends.get(backend.index()) {
            SharedU64::store(&clock.kv_events, u64::from(kv_events));
        }
    }

    /// Returns whether the entries of `backend` come from its KV events.
    pub fn has_kv_events(&self, backend: BackendId) -> bool {
        self.table
            .backends
            .get(backend.index())
            .is_some_and(|clock| SharedU64::load(&clock.kv_events) != 0)
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

// === impl LineTable ===

impl<W: SharedU64> LineTable<W> {
    fn new(lines: usize, backends: usize) -> LineTable<W> {
        let lines = lines.max(WAYS).next_power_of_two();
        let clock = || BackendClock {
            count: W::new(1),
            capacity: W::new(lines as u64),
            invalid_up_to: W::new(0),
            kv_events: W::new(0),
        };
        LineTable {
            pages: std::iter::repeat_with(OnceLock::new).take(lines.div_ceil(PAGE)).collect(),
            lines,
            backends: std::iter::repeat_with(clock).take(backends).collect(),
            set_mask: (lines / WAYS) as u64 - 1,
        }
    }

    fn forget(&self, backend: BackendId) {
        if let Some(clock) = self.backends.get(backend.index()) {
            // Later insertions must have a higher count than the invalid entries.
            clock.invalid_up_to.store(clock.count.fetch_add(1));
        }
    }

    fn insert(&self, backend: BackendId, chain: &[u64]) {
        let Some(clock) = self.backends.get(backend.index()) else { return };
        let has_kv_events = clock.kv_events.load() != 0;
        for hash in chain {
            let (set, tag) = self.allocated_set(*hash);
            match line_of(set, tag) {
                Some(line) if !has_kv_events || self.holds(line, backend) => {
                    self.touch(line, tag, backend, clock);
                }
                None if !has_kv_events => self.replace(set, tag, backend, clock),
                _ => {}
            }
        }
    }

    fn store(&self, backend: BackendId, hash: u64) {
        let Some(clock) = self.backends.get(backend.index()) else { return };
        let (set, tag) = self.allocated_set(hash);
        match line_of(set, tag) {
            Some(line) => self.touch(line, tag, backend, clock),
            None => self.replace(set, tag, backend, clock),
        }
    }

    fn remove(&self, backend: BackendId, hash: u64) {
        let (set, tag) = self.set_of(hash);
        let Some(line) = line_of(set, tag) else { return };
        let is_own = |slot: &&W| slot.load() != 0 && backend_of(slot.load()) == backend;
        let word = line.word.load();
        let busy = word & (WRITING_TAG | WRITING_HOLDER) != 0;
        // A concurrent writer has priority; the entry it leaves may be stale, which a hint may be.
        if busy
            || word >> TAG_SHIFT != tag
            || !line.word.compare_and_set(word, word | WRITING_HOLDER)
        {
            return;
        }
        if let Some(slot) = line.holders.iter().find(is_own) {
            slot.store(0);
        }
        line.word.store(word);
    }

    fn holds(&self, line: &CacheLine<W>, backend: BackendId) -> bool {
        let mut holders = line.holders.iter().map(SharedU64::load);
        holders.any(|holder| backend_of(holder) == backend && self.age(holder).is_some())
    }

    /// Adds `backend` to the holders of a block that is in the index, or refreshes it.
    fn touch(&self, line: &CacheLine<W>, tag: u64, backend: BackendId, clock: &BackendClock<W>) {
        let is_own = |slot: &&W| slot.load() != 0 && backend_of(slot.load()) == backend;
        let own_age = || self.age(line.holders.iter().find(is_own)?.load());
        let fresh = clock.capacity.load() / REFRESH_SHARE;
        if own_age().is_some_and(|age| age.insertions <= fresh) {
            return;
        }
        let word = line.word.load();
        let busy = word & (WRITING_TAG | WRITING_HOLDER) != 0;
        if busy
            || word >> TAG_SHIFT != tag
            || !line.word.compare_and_set(word, word | WRITING_HOLDER)
        {
            return;
        }
        // From here on no other thread writes this line.
        let count = if own_age().is_some() { clock.count.load() } else { clock.count_insertion() };
        let slot = line.holders.iter().find(is_own).unwrap_or_else(|| self.least_recent(line));
        slot.store(pack(backend, count));
        line.word.store(word);
    }

    /// Inserts a block in place of the least recently used line of its set.
    fn replace(&self, set: &[CacheLine<W>], tag: u64, backend: BackendId, clock: &BackendClock<W>) {
        // The word is read before the age: if another thread changes the tag in between, the
        // compare-and-swap fails.
        let seen = set.iter().map(|line| (line, line.word.load(), self.freshest_age(line)));
        let free = seen.filter(|(_, word, _)| word & (WRITING_TAG | WRITING_HOLDER) == 0);
        // Of equal lines the first is taken: while a set is not full, a search ends early.
        let Some((line, word, _)) = free.min_by(|a, b| b.2.total_cmp(&a.2)) else { return };
        let version = word.wrapping_add(VERSION_ONE) & VERSION_MASK;
        let new_word = tag << TAG_SHIFT | version;
        if !line.word.compare_and_set(word, new_word | WRITING_TAG) {
            return;
        }
        for holder in &line.holders[1..] {
            holder.store(0);
        }
        line.holders[0].store(pack(backend, clock.count_insertion()));
        line.word.store(new_word);
    }

    fn matches(&self, chain: &[u64]) -> Matches {
        let mut lookup = Lookup::default();
        // Lookups run in batches so that their cache misses overlap.
        for hashes in chain.chunks(BATCH) {
            let mut found = [None; BATCH];
            for (slot, hash) in found.iter_mut().zip(hashes) {
                *slot = self.find(*hash);
            }
            for found in &found[..hashes.len()] {
                let holders = found.and_then(|(line, word)| holders(line, word));
                if !lookup.step(holders, |holder| self.age(holder).is_some()) {
                    return lookup.end();
                }
            }
        }
        lookup.end()
    }

    /// Returns a block's line and the word it had.
    fn find(&self, hash: u64) -> Option<(&CacheLine<W>, u64)> {
        let (set, tag) = self.set_of(hash);
        let words = set.iter().map(|line| (line, line.word.load()));
        words.into_iter().find(|(_, word)| word >> TAG_SHIFT == tag)
    }

    /// Returns the set and the tag of a hash; the set is empty if its page is not allocated.
    fn set_of(&self, hash: u64) -> (&[CacheLine<W>], u64) {
        let (page, first, tag) = self.address(hash);
        let set = page.get().map_or(&[][..], |lines| &lines[first..first + WAYS]);
        (set, tag)
    }

    /// Returns the set and the tag of a hash, and allocates the page if needed.
    fn allocated_set(&self, hash: u64) -> (&[CacheLine<W>], u64) {
        let line = || CacheLine { word: W::new(0), holders: std::array::from_fn(|_| W::new(0)) };
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
        let clock = self.backends.get(backend_of(holder).index())?;
        let count = holder & COUNT_MASK;
        let insertions = (clock.count.load() & COUNT_MASK).saturating_sub(count);
        let capacity = clock.capacity.load();
        let kept = insertions < capacity || clock.kv_events.load() != 0;
        let held = count > clock.invalid_up_to.load() && kept;
        held.then_some(Age { insertions, capacity })
    }

    /// Returns the slot to replace: an empty one, else the least recently used one.
    fn least_recent<'a>(&self, line: &'a CacheLine<W>) -> &'a W {
        let share = |slot: &&W| self.age(slot.load()).map_or(f64::INFINITY, Age::share);
        let least_recent = line.holders.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
        least_recent.unwrap_or(&line.holders[0])
    }

    /// Returns the age of the freshest holder of a line, as a share of capacity; infinite without a
    /// valid holder.
    fn freshest_age(&self, line: &CacheLine<W>) -> f64 {
        let ages = line.holders.iter().filter_map(|holder| self.age(holder.load()));
        ages.map(Age::share).fold(f64::INFINITY, f64::min)
    }
}

fn line_of<W: SharedU64>(set: &[CacheLine<W>], tag: u64) -> Option<&CacheLine<W>> {
    set.iter().find(|line| line.word.load() >> TAG_SHIFT == tag)
}

/// Returns a consistent view of a line's holders; `None` if a thread writes the tag, or has written
/// it since `word` was read.
fn holders<W: SharedU64>(line: &CacheLine<W>, word: u64) -> Option<[u64; HOLDERS]> {
    let holders = std::array::from_fn(|i| line.holders[i].load());
    let same = |word: u64| word & !WRITING_HOLDER;
    let consistent = word & WRITING_TAG == 0 && same(line.word.load()) == same(word);
    consistent.then_some(holders)
}

// === impl Lookup ===

impl Default for Lookup {
    fn default() -> Lookup {
        Lookup { matches: Matches::default(), depth: 0, missing: 0, all_full: true }
    }
}

impl Lookup {
    /// Examines one block. Returns whether to continue.
    fn step(&mut self, holders: Option<[u64; HOLDERS]>, is_held: impl Fn(u64) -> bool) -> bool {
        self.depth += 1;
        let Some(holders) = holders else {
            self.missing += 1;
            return self.missing <= MISSING_MAX;
        };
        let reached = self.depth - 1 - self.missing;
        let (mut alive, mut longer) = (0, false);
        for holder in holders.into_iter().filter(|holder| is_held(*holder)) {
            alive += 1;
            let backend = backend_of(holder);
            let held_before = reached > 0 && self.matches.blocks_on(backend) == reached;
            if held_before || self.all_full {
                self.matches.set(backend, self.depth);
                longer = true;
            }
        }
        self.all_full &= alive == HOLDERS;
        self.missing = 0;
        longer
    }

    fn end(mut self) -> Matches {
        self.matches.sort();
        self.matches
    }
}

impl<W: SharedU64> BackendClock<W> {
    /// Counts an inserted block and returns its count, at least 1.
    fn count_insertion(&self) -> u64 {
        self.count.fetch_add(1) + 1
    }
}

#[derive(Clone, Copy)]
struct Age {
    insertions: u64,
    capacity: u64,
}

impl Age {
    /// Age as a share of capacity: 0 is just used, 1 is evicted.
    fn share(self) -> f64 {
        self.insertions as f64 / self.capacity as f64
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
