//! Who holds how much of one prompt: a small value that travels with the request.

use tidegate_types::BackendId;

/// Holders an index line has room for.
pub(super) const HOLDERS: usize = 7;

/// How many of a prompt's leading blocks each of some backends holds, longest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matches {
    entries: [(BackendId, u32); HOLDERS],
    len: u8,
}

impl Matches {
    /// Nobody holds anything.
    pub const NONE: &'static Matches = &Matches { entries: [(BackendId(0), 0); HOLDERS], len: 0 };

    /// From backends and their blocks, each backend once; the longest seven are kept.
    pub fn of(pairs: impl IntoIterator<Item = (BackendId, u32)>) -> Matches {
        let mut matches = Matches::default();
        for (backend, blocks) in pairs {
            matches.set(backend, blocks);
        }
        matches.sort();
        matches
    }

    /// How many leading blocks a backend holds; 0 if unknown.
    pub fn blocks_on(&self, backend: BackendId) -> u32 {
        let entry = self.entries().iter().find(|(holder, _)| *holder == backend);
        entry.map_or(0, |(_, blocks)| *blocks)
    }

    /// All entries, longest first.
    pub fn entries(&self) -> &[(BackendId, u32)] {
        &self.entries[..usize::from(self.len)]
    }

    /// The most blocks anyone holds.
    pub fn longest(&self) -> u32 {
        self.entries().first().map_or(0, |(_, blocks)| *blocks)
    }

    /// Does nobody hold anything?
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `backend` holds the first `blocks`. Takes the place of the shortest if all are taken.
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

    /// Longest first; equals by id, so that the order of insertion cannot matter.
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
