//! Directories of files as a source of backends (`[backends.directory]`). A file that cannot be used
//! (an empty one included, which a writer has just truncated) keeps its last known backends, and so
//! does a directory that cannot be read. A deleted file removes its backends.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use tidegate_settings::reconcile::SourceId;
use tidegate_settings::{BackendSettings, Settings, backends_of, joined};
use tidegate_types::Seconds;
use tokio::sync::mpsc;

use crate::control::{Desired, FleetUpdate};
use crate::process::desired::DesiredBackends;
use crate::process::files;
use crate::runtime::file_stamp::{Change, Settling, Stamp, stamp};

/// Interval of the checks, one `stat` call a file. Each file is read once two checks have seen the
/// same version of it, whatever happens to the others.
const CHECK_INTERVAL: Seconds = Seconds(1.0);

/// The directories of all entries.
pub struct Directories(Vec<WatchedDirectory>);

/// One directory.
struct WatchedDirectory {
    path: PathBuf,
    files: BTreeMap<OsString, WatchedFile>,
    is_failing: bool,
}

/// One file of a directory.
#[derive(Default)]
struct WatchedFile {
    /// `None`: the file does not exist. Writers that delete a file before they write it again are
    /// treated as those that truncate it.
    version: Settling<Option<Stamp>>,
    /// The last good backends.
    backends: Vec<BackendSettings>,
    /// The last logged problem.
    problem: Option<String>,
}

impl Directories {
    /// `None` without `[backends.directory]`.
    pub fn new(settings: &Settings) -> Option<Directories> {
        let directory = |entry: &BackendSettings| {
            let path = entry.directory.as_ref()?.path.clone();
            Some(WatchedDirectory { path, files: BTreeMap::new(), is_failing: false })
        };
        let all: Vec<WatchedDirectory> = settings.sources.iter().filter_map(directory).collect();
        (!all.is_empty()).then_some(Directories(all))
    }

    /// Reads every file once. Blocks.
    pub fn first(&mut self) -> DesiredBackends {
        for directory in &mut self.0 {
            directory.check(true);
        }
        self.desired()
    }

    /// Checks the files until the control loop ends.
    pub async fn run(mut self, updates: mpsc::Sender<FleetUpdate>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL.to_duration()) => {}
                () = updates.closed() => return,
            }
            // On a blocking thread: the files may be on a slow disk.
            let checking = tokio::task::spawn_blocking(move || {
                let changed = self.0.iter_mut().fold(false, |any, one| one.check(false) | any);
                (self, changed)
            });
            let changed;
            (self, changed) = match checking.await {
                Ok(checked) => checked,
                Err(error) => return tracing::error!("directories are not watched: {error}"),
            };
            if changed {
                let desired = Desired::All(self.desired());
                let update = FleetUpdate { source: SourceId::Watched, desired, reply: None };
                if updates.send(update).await.is_err() {
                    return;
                }
            }
        }
    }

    fn desired(&self) -> DesiredBackends {
        let files = self.0.iter().flat_map(|directory| directory.files.values());
        files.flat_map(|file| &file.backends).cloned().map(Ok).collect()
    }
}

impl WatchedDirectory {
    /// Reads the files that are due, or all if `at_once`. Returns whether the backends of any file
    /// changed.
    fn check(&mut self, at_once: bool) -> bool {
        let Some(mut now) = self.stamps() else { return false };
        let names: BTreeSet<&OsString> = self.files.keys().chain(now.keys()).collect();
        let names: Vec<OsString> = names.into_iter().cloned().collect();
        let mut changed = false;
        for name in names {
            let path = self.path.join(&name);
            let (file, version) = (self.files.entry(name.clone()).or_default(), now.remove(&name));
            changed |= file.check(&path, version, at_once);
            if file.is_gone() {
                self.files.remove(&name);
            }
        }
        changed
    }

    fn stamps(&mut self) -> Option<BTreeMap<OsString, Stamp>> {
        match stamps(&self.path) {
            Ok(stamps) => {
                self.is_failing = false;
                Some(stamps)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let path = self.path.display();
                    tracing::error!(%path, "directory cannot be read, its known backends stay: {error}");
                }
                None
            }
        }
    }
}

impl WatchedFile {
    /// Reads the file if it is due. Returns whether its backends changed.
    fn check(&mut self, path: &Path, version: Option<Stamp>, at_once: bool) -> bool {
        let change = self.version.check(version);
        let is_due = match change {
            Change::None => false,
            Change::Recent => at_once,
            // A file that comes and goes keeps its backends.
            Change::Overdue => version.is_some(),
            Change::Settled => true,
        };
        if !is_due {
            return false;
        }
        let read = match version {
            None => Ok(Vec::new()),
            Some(_) => read(path),
        };
        // A file that was written meanwhile is read again by the next check.
        if change == Change::Overdue && version != Some(stamp(path)) {
            return false;
        }
        self.version.was_read(version);
        match read {
            Ok(backends) => {
                self.problem = None;
                let changed = backends != self.backends;
                self.backends = backends;
                changed
            }
            Err(problem) => {
                if self.problem.as_ref() != Some(&problem) {
                    let path = path.display();
                    tracing::warn!(%path, "file cannot be used, its known backends stay: {problem}");
                }
                self.problem = Some(problem);
                false
            }
        }
    }

    /// Whether nothing is left to be known of a deleted file.
    fn is_gone(&self) -> bool {
        self.version.is_read(&None)
    }
}

/// The `*.toml` files of a directory. Names that begin with a dot are the kubelet's own.
#[allow(clippy::disallowed_methods, reason = "a directory that the settings name")]
fn stamps(path: &Path) -> io::Result<BTreeMap<OsString, Stamp>> {
    let mut stamps = BTreeMap::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        if is_hidden || path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let stamp = match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => stamp(&path),
            Ok(_) => continue,
            // Deleted since the listing.
            Err(_) if std::fs::symlink_metadata(&path).is_err() => continue,
            // A link without a target, or an unreadable file: its known backends stay.
            Err(_) => None,
        };
        stamps.insert(name, stamp);
    }
    Ok(stamps)
}

fn read(path: &Path) -> Result<Vec<BackendSettings>, String> {
    let text = files::text(path).map_err(|error| error.to_string())?;
    backends_of(&text).map_err(|problems| joined(&problems))
}
