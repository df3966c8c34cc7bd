//! Versions of files that are read again when they change.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What identifies a version of a file: device, inode, length, modification and status change in
/// nanoseconds; `None` if it cannot be read. Kubernetes replaces a mounted secret or ConfigMap by a
/// symbolic link: the target's are read.
pub type Stamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

/// The version of a file now.
#[allow(clippy::disallowed_methods, reason = "files that the settings name")]
pub fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    let changed = (meta.ctime(), meta.ctime_nsec());
    Some((meta.dev(), meta.ino(), meta.len(), (meta.mtime(), meta.mtime_nsec()), changed))
}

/// Checks after which a version is read although it keeps changing.
const CHANGING_CHECKS_MAX: u32 = 4;

/// How a version compares with the one that was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was read.
    None,
    /// It differs from that of the previous check: a program may be writing.
    Recent,
    /// It has differed from that of the previous check [`CHANGING_CHECKS_MAX`] times in a row.
    Overdue,
    /// Two checks in a row have seen it.
    Settled,
}

/// Decides when a changed file is read. A file being written is not read, and a file that is written
/// without pause is not left unread.
#[derive(Clone, Debug, Default)]
pub struct Settling<Version> {
    read: Version,
    seen: Version,
    changing: u32,
}

impl<Version: Clone + PartialEq> Settling<Version> {
    /// The state after this version was read.
    pub fn at(read: Version) -> Settling<Version> {
        Settling { seen: read.clone(), read, changing: 0 }
    }

    /// The version of the last check, or the one that was read since.
    pub fn seen(&self) -> &Version {
        &self.seen
    }

    /// Compares the version of a check.
    pub fn check(&mut self, now: Version) -> Change {
        let is_same = now == self.seen;
        self.seen = now;
        if self.seen == self.read {
            self.changing = 0;
            return Change::None;
        }
        self.changing += 1;
        match is_same {
            true => Change::Settled,
            false if self.changing > CHANGING_CHECKS_MAX => Change::Overdue,
            false => Change::Recent,
        }
    }

    /// Returns whether this version was read, and no other one has been seen since.
    pub fn is_read(&self, version: &Version) -> bool {
        self.read == *version && self.seen == *version
    }

    /// Notes that this version was read.
    pub fn was_read(&mut self, version: Version) {
        self.changing = 0;
        self.read = version;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_due_when_two_checks_have_seen_it_or_when_it_never_rests() {
        let mut file = Settling::<u32>::default();
        assert_eq!(file.check(0), Change::None);
        assert_eq!([file.check(1), file.check(1)], [Change::Recent, Change::Settled]);
        file.was_read(1);
        assert_eq!(file.check(1), Change::None);
        let changes: Vec<Change> = (2..8).map(|version| file.check(version)).collect();
        let (recent, overdue) = ([Change::Recent; 4], [Change::Overdue; 2]);
        assert_eq!(changes, [&recent[..], &overdue[..]].concat());
        file.was_read(7);
        assert_eq!([file.check(8), file.check(7)], [Change::Recent, Change::None]);
    }
}
