//! A value made from files, made again when they change. A broken replacement keeps the old value:
//! certificates are renewed by other programs, and a half-written file must not end service.

use arc_swap::ArcSwap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::TlsError;

/// What identifies a version of a file: device, inode, length, modification and status change in
/// nanoseconds. Kubernetes replaces a mounted secret by a symbolic link: the target's are read.
type Stamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

type Load<T> = Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>;

/// The value in force and how it is made.
pub struct Watched<T> {
    /// The section of the settings that names the files.
    section: String,
    files: Vec<PathBuf>,
    /// Of the files when they were last read. Locked by the reloading task alone.
    seen: Mutex<Vec<Stamp>>,
    load: Load<T>,
    current: ArcSwap<T>,
}

/// Something that is loaded again when its files change.
pub trait Refresh: Send + Sync {
    /// Load again if a file has changed, or in any case if `always`. True if it was loaded.
    ///
    /// # Errors
    /// The files hold nothing usable; the old value stays in force. Reported once for each version
    /// of the files.
    fn refresh(&self, always: bool) -> Result<bool, TlsError>;

    /// The section of the settings that names the files.
    fn section(&self) -> &str;
}

impl<T> Watched<T> {
    /// Load for the first time.
    ///
    /// # Errors
    /// What `load` finds.
    pub fn load(section: String, files: Vec<PathBuf>, load: Load<T>) -> Result<Self, TlsError> {
        // Before the files are read: a change while they are shows with the next look.
        let seen = Mutex::new(files.iter().map(|file| stamp(file)).collect());
        let current = ArcSwap::from_pointee(load()?);
        Ok(Watched { section, files, seen, load, current })
    }

    /// The value in force.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }
}

impl<T: Send + Sync> Refresh for Watched<T> {
    fn refresh(&self, always: bool) -> Result<bool, TlsError> {
        let now: Vec<Stamp> = self.files.iter().map(|file| stamp(file)).collect();
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == now && !always {
                return Ok(false);
            }
            *seen = now;
        }
        self.current.store(Arc::new((self.load)()?));
        Ok(true)
    }

    fn section(&self) -> &str {
        &self.section
    }
}

#[allow(clippy::disallowed_methods, reason = "files that the settings name")]
fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    let changed = (meta.ctime(), meta.ctime_nsec());
    Some((meta.dev(), meta.ino(), meta.len(), (meta.mtime(), meta.mtime_nsec()), changed))
}
