//! A value loaded from files and reloaded when they change. If the new files are unusable, the old
//! value stays in force: other programs renew certificates, and a reload may see a half-written file.

use arc_swap::ArcSwap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::file_stamp::{Stamp, stamp};

/// Reads the files. The value in force is its argument; `None` at the start.
type Load<T, E> = Box<dyn Fn(Option<&T>) -> Result<T, E> + Send + Sync>;

/// The value in force and its loader.
pub struct Reloadable<T, E> {
    /// The section or setting that names the files.
    section: String,
    files: Vec<PathBuf>,
    /// Versions of the files when they were last read. Locked by the reloading task only.
    seen: Mutex<Vec<Stamp>>,
    load: Load<T, E>,
    current: ArcSwap<T>,
}

/// A value that is reloaded when its files change.
pub trait Refresh: Send + Sync {
    /// Reloads if a file has changed, or unconditionally if `always`. Returns whether it reloaded.
    ///
    /// # Errors
    /// The files are unusable; the old value stays in force. Reported once per version of the files.
    fn refresh(&self, always: bool) -> Result<bool, Box<dyn Error + Send + Sync>>;

    /// The section or setting that names the files.
    fn section(&self) -> &str;
}

impl<T, E> Reloadable<T, E> {
    /// Loads the first value.
    ///
    /// # Errors
    /// The error of `load`.
    pub fn load(section: String, files: Vec<PathBuf>, load: Load<T, E>) -> Result<Self, E> {
        // Stamped before the files are read, so that a change during the read is found by the next check.
        let seen = Mutex::new(files.iter().map(|file| stamp(file)).collect());
        let current = ArcSwap::from_pointee(load(None)?);
        Ok(Reloadable { section, files, seen, load, current })
    }

    /// The value in force.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }
}

impl<T: Send + Sync, E: Error + Send + Sync + 'static> Refresh for Reloadable<T, E> {
    fn refresh(&self, always: bool) -> Result<bool, Box<dyn Error + Send + Sync>> {
        let now: Vec<Stamp> = self.files.iter().map(|file| stamp(file)).collect();
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == now && !always {
                return Ok(false);
            }
            *seen = now;
        }
        let value = (self.load)(Some(&self.current()))?;
        self.current.store(Arc::new(value));
        Ok(true)
    }

    fn section(&self) -> &str {
        &self.section
    }
}
