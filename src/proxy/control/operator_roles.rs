//! Roles that operators set through the admin address, kept in a state file over a restart. An
//! entry whose role the settings no longer allow is ignored with a warning.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;
use tidegate_engine::Family;
use tidegate_settings::{BackendSettings, Settings};
use tidegate_types::Role;

/// Role that an operator last set for one backend.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperatorRole {
    /// Role that the operator set.
    pub role: Role,
    /// Whether the role is pinned.
    pub pin: bool,
    /// End of a timed hold in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_until: Option<f64>,
}

/// Roles set by operators, by backend name.
#[derive(Debug, Default)]
pub struct OperatorRoles {
    path: Option<PathBuf>,
    entries: BTreeMap<String, OperatorRole>,
}

/// The state file exists but cannot be read.
#[derive(Debug, Error)]
#[error("cannot read {path}: {source}")]
pub struct StateError {
    path: PathBuf,
    source: std::io::Error,
}

impl OperatorRoles {
    /// Reads the state file. A missing file, or no configured path, gives no entries.
    ///
    /// # Errors
    /// The file exists but cannot be read or parsed. A start without it would discard roles set by
    /// operators.
    #[allow(clippy::disallowed_methods, reason = "a file that the settings name")]
    pub fn read(path: Option<&Path>) -> Result<OperatorRoles, StateError> {
        let Some(path) = path else { return Ok(OperatorRoles::default()) };
        let failed = |source| StateError { path: path.to_owned(), source };
        let entries = match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| failed(std::io::Error::other(error)))?,
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(failed(error)),
        };
        Ok(OperatorRoles { path: Some(path.to_owned()), entries })
    }

    /// Overrides role and pin of the backends in `settings` with those set by operators.
    pub fn apply(&self, settings: &mut Settings) {
        for backend in &mut settings.backends {
            let Some(entry) = self.entries.get(&backend.name) else { continue };
            if may_have(backend, entry.role) {
                (backend.role, backend.pin) = (Some(entry.role), entry.pin);
            } else {
                let role = entry.role.as_str();
                tracing::warn!(backend = %backend.name, role, "state file: role set by an operator is no longer allowed by the settings, ignored");
            }
        }
    }

    /// End of a backend's timed hold in seconds since the Unix epoch; `None` without a hold.
    pub fn hold_until(&self, name: &str) -> Option<f64> {
        self.entries.get(name)?.hold_until
    }

    /// Records `entry` for a backend and writes the file before the operator gets the answer. The
    /// file has a few hundred bytes and is written only when an operator changes something.
    pub fn set(&mut self, name: &str, entry: OperatorRole) {
        let Some(path) = &self.path else { return };
        if self.entries.insert(name.to_owned(), entry) == Some(entry) {
            return;
        }
        if let Err(error) = write(path, &self.entries) {
            tracing::error!(path = %path.display(), "state file cannot be written, roles set by operators are lost on restart: {error}");
        }
    }
}

/// Whether operators may set `role`. The launch mode of an SGLang PD engine can only be changed by
/// a role switch.
fn may_have(backend: &BackendSettings, role: Role) -> bool {
    let launched = backend.family() == Family::SglangPd
        && (!backend.role_switch || !matches!(role, Role::Prefill | Role::Decode));
    !launched && backend.allowed_roles().contains(role)
}

/// Replaces the file atomically: writes a temporary file, syncs it and renames it.
#[allow(clippy::disallowed_types, reason = "a file that the settings name")]
fn write(path: &Path, entries: &BTreeMap<String, OperatorRole>) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(serde_json::to_string_pretty(entries)?.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_survive_a_restart_where_the_settings_allow_them() {
        let directory = std::env::temp_dir().join(format!("tidegate-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("roles.json");
        let mut operator_roles = OperatorRoles::read(Some(&path)).unwrap();
        let kept = |role, pin| OperatorRole { role, pin, hold_until: None };
        operator_roles.set("free", kept(Role::Decode, true));
        operator_roles.set("plain", kept(Role::Prefill, true));
        operator_roles
            .set("gone", OperatorRole { hold_until: Some(5.5), ..kept(Role::Draining, false) });
        let again = OperatorRoles::read(Some(&path)).unwrap();
        assert_eq!(again.entries, operator_roles.entries);
        let text = "[[backends]]\nname = \"free\"\nurl = \"http://a:1\"\nengine = \"vllm\"\nconnector = \"nixl\"\n\
            [[backends]]\nname = \"plain\"\nurl = \"http://b:1\"\n";
        let mut settings = Settings::parse(text).unwrap();
        again.apply(&mut settings);
        assert_eq!(
            (settings.backends[0].role, settings.backends[0].pin),
            (Some(Role::Decode), true)
        );
        assert_eq!((settings.backends[1].role, settings.backends[1].pin), (None, false));
        std::fs::write(&path, "{").unwrap();
        assert!(OperatorRoles::read(Some(&path)).is_err());
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(OperatorRoles::read(None).unwrap().entries.is_empty());
    }
}
