//! Backends that operators added or removed through the admin address, stored in a file beside the
//! state file so that they survive a restart.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use tidegate_settings::{BackendSettings, joined};

/// Backends added and removed by operators.
#[derive(Debug, Default)]
pub struct OperatorBackends {
    path: Option<PathBuf>,
    entries: Entries,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Entries {
    /// By name, with the keys of `[[backends]]`.
    added: BTreeMap<String, Value>,
    removed: BTreeSet<String>,
}

impl OperatorBackends {
    /// Reads the file beside `state_file`. A missing file, or no configured path, gives no entries.
    ///
    /// # Errors
    /// The file exists and cannot be read or parsed.
    #[allow(clippy::disallowed_methods, reason = "a file that the settings name")]
    pub fn read(state_file: Option<&Path>) -> std::io::Result<OperatorBackends> {
        let Some(state_file) = state_file else { return Ok(OperatorBackends::default()) };
        let mut path = state_file.as_os_str().to_owned();
        path.push(".backends");
        let path = PathBuf::from(path);
        let entries = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(std::io::Error::other)?,
            Err(error) if error.kind() == ErrorKind::NotFound => Entries::default(),
            Err(error) => return Err(error),
        };
        Ok(OperatorBackends { path: Some(path), entries })
    }

    /// Returns the added backends. One that is no longer valid is logged and skipped.
    pub fn added(&self) -> Vec<BackendSettings> {
        let mut added = Vec::new();
        for (name, text) in &self.entries.added {
            match BackendSettings::parse(text) {
                Ok(backend) => added.push(backend),
                Err(problems) => {
                    tracing::error!(
                        backend = name,
                        "state file: backend is no longer valid, skipped: {}",
                        joined(&problems)
                    );
                }
            }
        }
        added
    }

    /// Names of removed backends that another source still lists.
    pub fn removed(&self) -> impl Iterator<Item = &String> {
        self.entries.removed.iter()
    }

    /// Records an added backend before the operator gets the answer.
    pub fn add(&mut self, name: &str, text: Value) {
        self.entries.removed.remove(name);
        self.entries.added.insert(name.to_owned(), text);
        self.write();
    }

    /// Records a removed backend; `is_listed`: by another source.
    pub fn remove(&mut self, name: &str, is_listed: bool) {
        self.entries.added.remove(name);
        if is_listed {
            self.entries.removed.insert(name.to_owned());
        }
        self.write();
    }

    #[allow(clippy::disallowed_types, reason = "a file that the settings name")]
    fn write(&self) {
        let Some(path) = &self.path else { return };
        let write = || {
            let mut beside = path.as_os_str().to_owned();
            beside.push(".new");
            let mut file = std::fs::File::create(&beside)?;
            file.write_all(serde_json::to_string_pretty(&self.entries)?.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, path)
        };
        if let Err(error) = write() {
            tracing::error!(path = %path.display(), "state file cannot be written, added backends are lost on restart: {error}");
        }
    }
}
