//! KV store shared by the engines of one process, keyed by the hash of a prompt's blocks
//! (docs/spec/engine-protocols.md#shared-store: LMCache, MooncakeStore). It contains only what an
//! engine has put: a decode without a preceding prefill computes the prompt, which is counted.

use std::sync::{Mutex, MutexGuard, PoisonError};
use tidegate_types::Tokens;

use crate::block_cache::BlockCache;
use crate::config::{EmulatedEngine, VllmConnector};
use crate::engine::EmulatedState;
use crate::stats::EmulatorCounters;
use crate::tokens::TokenizedPrompt;

/// Far larger than any engine's memory.
const CAPACITY: Tokens = Tokens(1 << 26);

/// Blocks by chained hash.
#[derive(Debug)]
pub struct SharedKvStore(Mutex<BlockCache>);

impl Default for SharedKvStore {
    fn default() -> SharedKvStore {
        SharedKvStore(Mutex::new(BlockCache::new(CAPACITY)))
    }
}

impl SharedKvStore {
    fn blocks(&self) -> MutexGuard<'_, BlockCache> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether this engine uses the store.
pub fn used_by(engine: &EmulatedState) -> bool {
    engine.config.kind == EmulatedEngine::Vllm
        && engine.config.connector == VllmConnector::SharedStore
}

/// Returns how many prompt tokens beyond the first `local` the engine fetches from the store.
pub fn fetch(engine: &EmulatedState, prompt: &TokenizedPrompt, local: Tokens) -> Tokens {
    if !used_by(engine) {
        return Tokens::ZERO;
    }
    // The last token is always computed: it yields the first token of the answer.
    let known = engine.store.blocks().known(&prompt.chain()).min(prompt.tokens() - 1);
    let fetched = Tokens(known) - local;
    if fetched > Tokens::ZERO {
        EmulatorCounters::add(&engine.counters.transfers_in, 1);
        EmulatorCounters::add(&engine.counters.tokens_in, fetched.get());
        EmulatorCounters::add(
            &engine.counters.bytes_in,
            fetched.get() * engine.config.profile.kv_bytes,
        );
    }
    fetched
}

/// Stores blocks that the engine has computed.
pub fn put(engine: &EmulatedState, chain: &[u64]) {
    let new = {
        let mut blocks = engine.store.blocks();
        let known = blocks.touch(chain);
        BlockCache::tokens(chain.len()) - known
    };
    EmulatorCounters::add(&engine.counters.bytes_out, new * engine.config.profile.kv_bytes);
}
