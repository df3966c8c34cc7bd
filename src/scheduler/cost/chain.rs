//! Chained hashes of a prompt's blocks: the hash of a block covers all earlier blocks, so that equal
//! hashes mean equal prefixes. Without a random seed, all replicas of the proxy compute equal hashes.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Returns the salt of prompts that may share blocks: those of one model and one `cache_salt` (as
/// JSON, with its quotes; empty without one).
pub fn chain_salt(model: &str, cache_salt: &[u8]) -> u64 {
    xxh3_64_with_seed(cache_salt, xxh3_64_with_seed(model.as_bytes(), 0))
}

/// Returns the hashes of the full blocks of `block` tokens each; empty if `block` is 0. `salt`
/// separates prompts that must not share blocks (another model, another tenant's cache salt).
pub fn chain_tokens(salt: u64, tokens: &[u32], block: usize) -> Vec<u64> {
    if block == 0 {
        return Vec::new();
    }
    let mut bytes = Vec::with_capacity(block * 4);
    chain(salt, tokens.chunks_exact(block), |previous, block| {
        bytes.clear();
        bytes.extend(block.iter().flat_map(|token| token.to_le_bytes()));
        xxh3_64_with_seed(&bytes, previous)
    })
}

/// Returns the hashes of the full blocks of `block` bytes each, for prompts without a tokenizer;
/// empty if `block` is 0.
pub fn chain_bytes(salt: u64, bytes: &[u8], block: usize) -> Vec<u64> {
    if block == 0 {
        return Vec::new();
    }
    chain(salt, bytes.chunks_exact(block), |previous, block| xxh3_64_with_seed(block, previous))
}

/// Most blocks of a prompt that are hashed: a million tokens in blocks of 64. The lookup and insertion
/// of a block on the request path take about 100 ns.
const BLOCKS_MAX: usize = 16_384;

fn chain<T>(
    salt: u64,
    blocks: impl Iterator<Item = T>,
    mut hash: impl FnMut(u64, T) -> u64,
) -> Vec<u64> {
    let mut previous = salt;
    blocks
        .take(BLOCKS_MAX)
        .map(|block| {
            previous = hash(previous, block);
            previous
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_full_blocks_are_hashed() {
        assert_eq!(chain_bytes(0, b"0123456789", 4).len(), 2);
        assert_eq!(chain_tokens(0, &[1, 2, 3], 4), Vec::<u64>::new());
        assert_eq!(chain_tokens(0, &[1, 2, 3], 0), Vec::<u64>::new());
        assert_eq!(chain_bytes(0, b"abc", 0), Vec::<u64>::new());
    }

    #[test]
    fn replicas_of_every_version_hash_alike() {
        assert_eq!(chain_tokens(7, &[1, 2, 3, 4], 2), [15677462436803608957, 15483445180845239416]);
        assert_eq!(chain_bytes(7, &[1, 0, 0, 0, 2, 0, 0, 0], 8), chain_tokens(7, &[1, 2], 2));
    }

    proptest! {
        #[test]
        fn prompts_share_hashes_exactly_as_far_as_they_share_blocks(
            a in prop::collection::vec(0u32..3, 0..60),
            b in prop::collection::vec(0u32..3, 0..60),
            block in 1usize..6,
        ) {
            let (left, right) = (chain_tokens(1, &a, block), chain_tokens(1, &b, block));
            let hashes = left.iter().zip(&right).filter(|(x, y)| x == y).count();
            let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
            prop_assert_eq!(hashes, same / block);
            let salted = chain_tokens(2, &a, block);
            prop_assert!(left.iter().zip(&salted).all(|(x, y)| x != y));
        }
    }
}
