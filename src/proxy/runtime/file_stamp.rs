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
