//! The backends that hold a prompt's leading blocks: a small value that travels with the request.

use tidegate_types::BackendId;

/// Holders per index line.
pub(super) const HOLDERS: usize = 7;

/// Number of a prompt's leading blocks on each of up to seven backends, longest match first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matches {
    entries: [(BackendId, u32); HOLDERS],
    len: u8,
}

impl Matches {
    /// No match.
    pub const NONE: &'static Matches = &Matches { entries: [(BackendId(0), 0); HOLDERS], len: 0 };

    /// Builds matches from backends and their blocks, each backend once; the longest seven are
    /// kept.
    pub fn of(pairs: impl IntoIterator<Item = (BackendId, u32)>) -> Matches {
        let mut matches = Matches::default();
        for (backend, blocks) in pairs {
            matches.set(backend, blocks);
        }
        matches.sort();
        matches
    }

    /// Returns the number of leading blocks on a backend; 0 if unknown.
    pub fn blocks_on(&self, backend: BackendId) -> u32 {
        let entry = self.entries().iter().find(|(holder, _)| *holder == backend);
        entry.map_or(0, |(_, blocks)| *blocks)
    }

    /// Returns all entries, longest first.
    pub fn entries(&self) -> &[(BackendId, u32)] {
        &self.entries[..usize::from(self.len)]
    }

    /// Returns the length of the longest match, in blocks.
    pub fn longest(&self) -> u32 {
        self.entries().first().map_or(0, |(_, blocks)| *blocks)
    }

    /// Returns whether there is no match.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the match of `backend`; if all entries are used, the shortest is replaced.
    pub(super) fn set(&mut self, backend: BackendId, blocks: u32) {
        let len = usize::from(self.len);
        if let Some(entry) = self.entries[..len].iter_mut().find(|(holder, _)| *holder == backend) {
            entry.1 = blocks;
        } else if len < HOLDERS {
            self.entries[len] = (backend, blocks);
            self.len += 1;
        } else if let Some(shortest) = self.entries.iter_mut().min_by_key(|(_, blocks)| *blocks)
            && shortest.1 < blocks
        {
            *shortest = (backend, blocks);
        }
    }

    /// Sorts by length, longest first, then by id, so that the result does not depend on the order
    /// of insertion.
    pub(super) fn sort(&mut self) {
        let len = usize::from(self.len);
        self.entries[..len]
            .sort_unstable_by_key(|(backend, blocks)| (std::cmp::Reverse(*blocks), *backend));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_seven_are_kept_in_order() {
        let matches = Matches::of((0..10).map(|n| (BackendId(n), u32::from(n) + 1)));
        let blocks: Vec<u32> = matches.entries().iter().map(|(_, blocks)| *blocks).collect();
        assert_eq!(blocks, [10, 9, 8, 7, 6, 5, 4]);
        assert_eq!((matches.blocks_on(BackendId(9)), matches.blocks_on(BackendId(0))), (10, 0));
        assert_eq!((matches.longest(), Matches::NONE.longest()), (10, 0));
        assert!(Matches::NONE.is_empty());
    }
}
