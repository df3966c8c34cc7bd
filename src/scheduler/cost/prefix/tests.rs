//! Tests of the index against a naive model, and under the interleavings that shuttle explores.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

fn blocks(index: &PrefixIndex, chain: &[u64], backend: u16) -> u32 {
    index.matches(chain).blocks_on(BackendId(backend))
}

#[test]
fn a_line_is_one_cache_line() {
    assert_eq!(size_of::<CacheLine<AtomicU64>>(), 64);
    assert_eq!(align_of::<CacheLine<AtomicU64>>(), 64);
}

#[test]
fn a_match_ends_at_the_first_block_that_is_not_held() {
    let index = PrefixIndex::new(1 << 12);
    index.insert(BackendId(1), &[10, 11, 12]);
    index.insert(BackendId(2), &[10]);
    index.insert(BackendId(2), &[12]);
    let matches = index.matches(&[10, 11, 12, 13]);
    assert_eq!(matches.entries(), [(BackendId(1), 3), (BackendId(2), 1)]);
    assert!(index.matches(&[99]).is_empty());
    assert!(index.matches(&[]).is_empty());
}

#[test]
fn up_to_two_missing_blocks_do_not_end_a_match() {
    let index = PrefixIndex::new(1 << 12);
    index.insert(BackendId(1), &[20, 21, 22, 23]);
    assert_eq!(blocks(&index, &[20, 998, 999, 23], 1), 4);
    assert_eq!(blocks(&index, &[999, 21], 1), 2);
    assert_eq!(blocks(&index, &[20, 997, 998, 999, 23], 1), 1);
    // In the index and held by another backend only: this one has evicted it.
    index.insert(BackendId(2), &[20, 30]);
    assert_eq!(blocks(&index, &[20, 30, 22], 1), 1);
}

#[test]
fn a_backend_evicts_blocks_after_inserting_its_capacity() {
    let index = PrefixIndex::new(1 << 12);
    index.set_capacity(BackendId(3), 100);
    index.insert(BackendId(3), &[1, 2]);
    let fill: Vec<u64> = (1000..1090).collect();
    index.insert(BackendId(3), &fill);
    assert_eq!(blocks(&index, &[1, 2], 3), 2);
    // A used block is refreshed and does not count as an insertion.
    index.insert(BackendId(3), &[1]);
    let more: Vec<u64> = (2000..2050).collect();
    index.insert(BackendId(3), &more);
    assert_eq!(blocks(&index, &[1, 2], 3), 1);
    assert_eq!(blocks(&index, &[2], 3), 0);
}

#[test]
fn a_backend_with_kv_events_holds_exactly_the_reported_blocks() {
    let index = PrefixIndex::new(1 << 12);
    let (reporting, other) = (BackendId(3), BackendId(4));
    index.set_capacity(reporting, 10);
    index.set_kv_events(reporting, true);
    index.store(reporting, 1);
    index.store(reporting, 2);
    // Routed requests add no entries, whether or not another backend holds the block.
    index.insert(other, &[1, 2, 3]);
    index.insert(reporting, &[1, 2, 3, 4]);
    assert_eq!(index.matches(&[1, 2, 3, 4]).entries(), [(other, 3), (reporting, 2)]);
    // It has inserted its capacity many times and reported no removal.
    (1000..1100).for_each(|hash| index.store(reporting, hash));
    assert_eq!(blocks(&index, &[1, 2], 3), 2);
    index.remove(reporting, 2);
    index.remove(reporting, 77);
    assert_eq!((blocks(&index, &[1, 2], 3), blocks(&index, &[1, 2], 4)), (1, 2));
    // Without KV events its entries age by capacity again.
    index.set_kv_events(reporting, false);
    assert_eq!(blocks(&index, &[1, 2], 3), 0);
}

#[test]
fn a_restarted_engine_holds_nothing_until_it_is_sent_blocks_again() {
    let index = PrefixIndex::new(64);
    index.insert(BackendId(0), &[5, 6]);
    index.forget(BackendId(0));
    assert!(index.matches(&[5, 6]).is_empty());
    index.insert(BackendId(0), &[5]);
    assert_eq!(blocks(&index, &[5, 6], 0), 1);
    index.set_capacity(BackendId(0), 0);
    assert!(index.matches(&[5]).is_empty());
}

#[test]
fn a_conversation_is_found_behind_a_system_prompt_that_all_backends_hold() {
    let index = PrefixIndex::new(1 << 12);
    index.insert(BackendId(50), &[1, 2, 70, 71]);
    for backend in 0..40 {
        index.insert(BackendId(backend), &[1, 2]);
    }
    let matches = index.matches(&[1, 2, 70, 71]);
    assert_eq!(matches.entries()[0], (BackendId(50), 4));
    assert_eq!(matches.entries().len(), HOLDERS);
}

#[test]
fn the_least_recently_used_lines_are_replaced_first() {
    let index = PrefixIndex::new(256);
    let hot: Vec<u64> = (0..16).collect();
    for round in 0..50 {
        index.insert(BackendId(0), &hot);
        let cold: Vec<u64> = (0..32).map(|n| 1_000_000 + round * 32 + n).collect();
        index.insert(BackendId(0), &cold);
    }
    index.insert(BackendId(0), &hot);
    let kept = hot.iter().filter(|hash| blocks(&index, &[**hash], 0) == 1).count();
    assert!(kept >= 15, "{kept} of 16");
}

#[test]
fn backends_beyond_the_limit_are_never_found_and_change_nothing() {
    let index = PrefixIndex::new(64);
    let far = BackendId(u16::MAX);
    index.insert(far, &[1]);
    index.set_capacity(far, 10);
    index.forget(far);
    assert!(index.matches(&[1]).is_empty());
}

/// A reference index with unlimited memory.
#[derive(Default)]
struct Naive {
    held: BTreeMap<u64, BTreeSet<u16>>,
}

impl Naive {
    fn blocks(&self, chain: &[u64], backend: u16) -> u32 {
        let holds = |hash: &&u64| self.held.get(hash).is_some_and(|who| who.contains(&backend));
        chain.iter().take_while(holds).count() as u32
    }
}

#[derive(Clone, Debug)]
enum IndexOperation {
    Insert(u16, Vec<u64>),
    Forget(u16),
}

/// The hashes of a prompt; like real ones, each covers all earlier blocks.
fn chains(alphabet: u32) -> impl Strategy<Value = Vec<u64>> {
    let prompt = prop::collection::vec(0..alphabet, 0..6);
    prompt.prop_map(|prompt| crate::cost::chain_tokens(0, &prompt, 1))
}

fn operations(backends: u16, alphabet: u32) -> impl Strategy<Value = Vec<IndexOperation>> {
    let operation = prop_oneof![
        8 => (0..backends, chains(alphabet)).prop_map(|(b, chain)| IndexOperation::Insert(b, chain)),
        1 => (0..backends).prop_map(IndexOperation::Forget),
    ];
    prop::collection::vec(operation, 0..120)
}

fn apply(operations: &[IndexOperation], index: &PrefixIndex, naive: &mut Naive) {
    for operation in operations {
        match operation {
            IndexOperation::Insert(backend, chain) => {
                index.insert(BackendId(*backend), chain);
                for hash in chain {
                    naive.held.entry(*hash).or_default().insert(*backend);
                }
            }
            IndexOperation::Forget(backend) => {
                index.forget(BackendId(*backend));
                naive.held.values_mut().for_each(|who| who.retain(|held| held != backend));
            }
        }
    }
}

proptest! {
    #[test]
    fn with_sufficient_memory_the_index_equals_a_map(
        operations in operations(6, 2),
        ask in chains(2),
    ) {
        let (index, mut naive) = (PrefixIndex::new(1 << 12), Naive::default());
        apply(&operations, &index, &mut naive);
        for backend in 0..6 {
            prop_assert_eq!(blocks(&index, &ask, backend), naive.blocks(&ask, backend));
        }
    }

    #[test]
    fn with_too_little_memory_the_index_has_no_false_entries(
        operations in operations(6, 4),
        ask in chains(4),
    ) {
        let (index, mut naive) = (PrefixIndex::new(16), Naive::default());
        apply(&operations, &index, &mut naive);
        for backend in 0..6 {
            prop_assert!(blocks(&index, &ask, backend) <= naive.blocks(&ask, backend));
        }
    }
}

type Shuttled = LineTable<shuttle::sync::atomic::AtomicU64>;

#[test]
fn no_interleaving_returns_holders_of_another_hash() {
    // One set, so that all threads contend for the same four lines.
    shuttle::check_random(
        || {
            let index = Arc::new(Shuttled::new(WAYS, 4));
            let writers: Vec<_> = (0..3u16)
                .map(|backend| {
                    let index = Arc::clone(&index);
                    shuttle::thread::spawn(move || {
                        let own: Vec<u64> = (0..5).map(|n| u64::from(backend) * 100 + n).collect();
                        index.insert(BackendId(backend), &own);
                        index.insert(BackendId(backend), &[7000]);
                    })
                })
                .collect();
            for _ in 0..3 {
                for hash in [0, 101, 202, 4] {
                    let matches = index.matches(&[hash]);
                    let mine = BackendId((hash / 100) as u16);
                    assert!(matches.entries().iter().all(|(backend, _)| *backend == mine));
                }
            }
            for writer in writers {
                writer.join().unwrap();
            }
            let all_idle = |line: &CacheLine<_>| SharedU64::load(&line.word) & 3 == 0;
            let mut lines = index.pages.iter().filter_map(OnceLock::get).flatten();
            assert!(lines.all(all_idle), "a line stayed claimed");
        },
        500,
    );
}

#[test]
fn no_interleaving_returns_holders_of_a_replaced_line() {
    // Few changes at few points: random order rarely reaches this interleaving.
    shuttle::check_pct(
        || {
            let index = Arc::new(Shuttled::new(WAYS, 4));
            let (old, new) = ([1, 2, 3, 4], [51, 52, 53, 54]);
            index.insert(BackendId(0), &old);
            let other = Arc::clone(&index);
            let writer = shuttle::thread::spawn(move || other.insert(BackendId(1), &new));
            // All four lines are found before the first one's holders are read.
            for first in 0..WAYS {
                let mut ask = old;
                ask.rotate_left(first);
                assert_eq!(index.matches(&ask).blocks_on(BackendId(1)), 0);
            }
            writer.join().unwrap();
        },
        500,
        3,
    );
}

#[test]
fn no_interleaving_lists_a_holder_twice() {
    shuttle::check_random(
        || {
            let index = Arc::new(Shuttled::new(WAYS, 4));
            let writers: Vec<_> = (0..3u16)
                .map(|thread| {
                    let index = Arc::clone(&index);
                    shuttle::thread::spawn(move || index.insert(BackendId(thread % 2), &[1, 2]))
                })
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            for hash in [1, 2] {
                let held: Vec<_> = index
                    .find(hash)
                    .and_then(|(line, word)| holders(line, word))
                    .into_iter()
                    .flatten()
                    .collect();
                let backends = held.iter().filter(|h| **h != 0).map(|h| backend_of(*h));
                let once: BTreeSet<_> = backends.clone().collect();
                assert_eq!(once.len(), backends.count());
                assert!(!once.is_empty(), "at least one insertion is kept");
            }
        },
        500,
    );
}
