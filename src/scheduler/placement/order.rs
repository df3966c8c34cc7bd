//! Seeded order in which backends are considered: a permutation, so that ties are broken uniformly
//! and any prefix of the order is a uniform sample. Allocates nothing.

/// Yields every index below `len` once. `seed` draws the start and the stride.
pub(super) fn order(len: usize, seed: u64) -> impl Iterator<Item = usize> {
    let start = if len == 0 { 0 } else { (seed % len as u64) as usize };
    let stride = stride(len, seed.rotate_left(32));
    (0..len).scan(start, move |at, _| {
        let here = *at;
        *at += stride;
        if *at >= len {
            *at -= len;
        }
        Some(here)
    })
}

/// Returns a stride below `len` that is coprime to it, so that every index is visited.
fn stride(len: usize, seed: u64) -> usize {
    if len < 3 {
        return 1 % len.max(1);
    }
    let first = 1 + (seed % (len as u64 - 1)) as usize;
    let coprime = |candidate: &usize| gcd(*candidate, len) == 1;
    (first..len).find(coprime).unwrap_or(1)
}

const fn gcd(mut a: usize, mut b: usize) -> usize {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_order_contains_every_index_once(len in 0usize..400, seed: u64) {
            let mut seen: Vec<usize> = order(len, seed).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..len).collect::<Vec<_>>());
        }
    }
}
