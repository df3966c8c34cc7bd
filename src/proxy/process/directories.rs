//! Directories of files as a source of backends (`[backends.directory]`). A file that cannot be used, or
//! a directory that cannot be read, keeps its last known backends.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use tidegate_settings::reconcile::SourceId;
use tidegate_settings::{BackendSettings, Settings, backends_of, joined};
use tidegate_types::Seconds;
use tokio::sync::mpsc;

use crate::control::{Desired, FleetUpdate};
use crate::process::desired::DesiredBackends;
use crate::runtime::file_stamp::{Stamp, stamp};

/// Interval of the checks, one `stat` call a file. A change is in force once two checks have seen
/// it.
const CHECK_INTERVAL: Seconds = Seconds(1.0);

/// The directories of all entries.
pub struct Directories(Vec<WatchedDirectory>);

/// One directory.
struct WatchedDirectory {
    path: PathBuf,
    /// File versions at the last read and at the previous check. A changed file is read once two
    /// checks have seen the same version, so that a file being written is not read.
    read: BTreeMap<OsString, Stamp>,
    seen: BTreeMap<OsString, Stamp>,
    /// The last good backends of each file.
    files: BTreeMap<OsString, Vec<BackendSettings>>,
    is_failing: bool,
}

impl Directories {
    /// `None` without `[backends.directory]`.
    pub fn new(settings: &Settings) -> Option<Directories> {
        let directory = |entry: &BackendSettings| {
            let path = entry.directory.as_ref()?.path.clone();
            let (read, seen, files) = Default::default();
            Some(WatchedDirectory { path, read, seen, files, is_failing: false })
        };
        let all: Vec<WatchedDirectory> = settings.sources.iter().filter_map(directory).collect();
        (!all.is_empty()).then_some(Directories(all))
    }

    /// Reads every file once. Blocks.
    pub fn first(&mut self) -> DesiredBackends {
        for directory in &mut self.0 {
            if let Some(now) = directory.stamps() {
                directory.seen.clone_from(&now);
                directory.take(now);
            }
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
                let changed = self.0.iter_mut().fold(false, |any, one| one.check() | any);
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
        files.flatten().cloned().map(Ok).collect()
    }
}

impl WatchedDirectory {
    /// Reads changed files whose version equals that of the previous check. Returns whether any was
    /// read.
    fn check(&mut self) -> bool {
        let Some(now) = self.stamps() else { return false };
        let is_stable = now == self.seen && now != self.read;
        self.seen.clone_from(&now);
        if is_stable {
            self.take(now);
        }
        is_stable
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

    /// Reads the files whose version differs from the one read last.
    fn take(&mut self, now: BTreeMap<OsString, Stamp>) {
        self.files.retain(|name, _| now.contains_key(name));
        for (name, stamp) in &now {
            if self.read.get(name) == Some(stamp) {
                continue;
            }
            let path = self.path.join(name);
            match read(&path) {
                Ok(backends) => {
                    self.files.insert(name.clone(), backends);
                }
                Err(problems) => {
                    tracing::error!(path = %path.display(), "file cannot be used, its known backends stay: {problems}");
                }
            }
        }
        self.read = now;
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

#[allow(clippy::disallowed_methods, reason = "a file of a directory that the settings name")]
fn read(path: &Path) -> Result<Vec<BackendSettings>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    backends_of(&text).map_err(|problems| joined(&problems))
}
