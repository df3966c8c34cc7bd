//! The settings file as a source of backends: read again on SIGHUP and when it changes. Its other
//! sections are in force from the start only.

use std::path::PathBuf;
use std::time::SystemTime;
use tidegate_settings::Settings;
use tidegate_settings::reconcile::SourceId;
use tokio::sync::{mpsc, oneshot};

use crate::backends::expand;
use crate::control::{Desired, FleetUpdate};

/// Time of the last change, and length. A replaced symlink changes both or either.
type Stamp = (SystemTime, u64);

/// The settings file of a running proxy.
pub struct ConfigFile {
    path: PathBuf,
    /// The settings in force, without backends.
    in_force: Settings,
    /// Stamp of the version that was read last, and of the previous look: a file that is being
    /// written is read once its stamp rests.
    read: Option<Stamp>,
    seen: Option<Stamp>,
    updates: mpsc::Sender<FleetUpdate>,
}

impl ConfigFile {
    /// The file that `settings` were read from; `None` if they came from elsewhere.
    pub fn new(settings: &Settings, updates: mpsc::Sender<FleetUpdate>) -> Option<ConfigFile> {
        let path = settings.file.clone()?;
        let in_force = without_backends(settings.clone());
        let read = stamp(&path);
        Some(ConfigFile { path, in_force, read, seen: read, updates })
    }

    /// Reads the file if `asked`, or if it has changed and rests. On an error all problems are
    /// logged and the backends in force stay.
    pub async fn look(&mut self, asked: bool) {
        let now = stamp(&self.path);
        let rests = now.is_some() && now == self.seen && now != self.read;
        self.seen = now;
        if !asked && !rests {
            return;
        }
        self.read = now;
        let path = self.path.clone();
        let reading = tokio::task::spawn_blocking(move || read(&path));
        let settings = match reading.await.map_err(|error| error.to_string()) {
            Ok(Ok(settings)) => settings,
            Ok(Err(problems)) | Err(problems) => {
                tracing::error!("the settings in force stay: {problems}");
                return;
            }
        };
        let desired = Desired::All(settings.backends.iter().cloned().map(Ok).collect());
        if without_backends(settings) != self.in_force {
            tracing::warn!(
                "the settings file changed outside [[backends]]: that takes effect at a restart"
            );
        }
        let (reply, answer) = oneshot::channel();
        let update = FleetUpdate { source: SourceId::File, desired, reply: Some(reply) };
        if self.updates.send(update).await.is_err() {
            return;
        }
        // The control loop logs problems itself.
        if let Ok(Ok(done)) = answer.await {
            tracing::info!(
                joined = done.joined,
                left = done.left,
                replaced = done.replaced,
                "the backends of the settings file are in force"
            );
        }
    }
}

fn without_backends(settings: Settings) -> Settings {
    Settings { backends: Vec::new(), file: None, ..settings }
}

#[allow(clippy::disallowed_methods, reason = "the settings file")]
fn stamp(path: &PathBuf) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.modified().ok()?, found.len()))
}

#[allow(clippy::disallowed_methods, reason = "the settings file")]
fn read(path: &PathBuf) -> Result<Settings, String> {
    let shown = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let mut settings = Settings::parse(&text).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        format!("{shown} cannot be used:\n{}", lines.join("\n"))
    })?;
    expand::expand(&mut settings);
    Ok(settings)
}
