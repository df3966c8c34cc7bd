//! The settings file of a running proxy: read again on SIGHUP, and when it or a file that it names
//! changes. All settings that need neither a new socket nor a new thread take effect together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidegate_settings::Settings;
use tidegate_settings::reconcile::SourceId;
use tidegate_settings::reload::{Reloaded, reload, text_hash};
use tokio::sync::{mpsc, oneshot};

use crate::backends::expand;
use crate::control::{Desired, FleetUpdate, KnownModel, Revision};
use crate::dispatch::context::Proxy;
use crate::dispatch::settings_in_force::{LastReload, Secrets, Trigger};
use crate::process::file_references;
use crate::process::files::{self, Files};
use crate::runtime::file_stamp::{Change, Settling, Stamp, stamp};
use crate::telemetry::log;

/// The settings file.
pub struct ConfigFile {
    proxy: Arc<Proxy>,
    path: PathBuf,
    /// Files that the settings read last name, whether those came into force or had errors.
    named: Vec<PathBuf>,
    /// Versions of the settings file and of the named files.
    versions: Settling<Vec<Stamp>>,
    revisions: mpsc::Sender<Revision>,
    updates: mpsc::Sender<FleetUpdate>,
}

/// Settings that were read and verified, with the contents of their files.
pub struct Verified {
    pub settings: Settings,
    /// Secrets of the settings and their files.
    pub secrets: Secrets,
    /// The models with their tokenizers.
    pub models: Vec<KnownModel>,
}

impl ConfigFile {
    /// The file that the settings in force were read from; `None` if they came from elsewhere.
    pub fn new(
        proxy: &Arc<Proxy>,
        revisions: mpsc::Sender<Revision>,
        updates: mpsc::Sender<FleetUpdate>,
    ) -> Option<ConfigFile> {
        let settings = proxy.settings.load();
        let path = settings.values.file.clone()?;
        let named = named(&settings.values);
        let stamps = stamps(&path, &named);
        // A change after the start of the process, which takes seconds, is found by the first
        // check.
        let read = if is_in_force(&path, &settings.values) { stamps } else { Vec::new() };
        let versions = Settling::at(read);
        let proxy = Arc::clone(proxy);
        Some(ConfigFile { proxy, path, named, versions, revisions, updates })
    }

    /// Reads the file if `forced`, or if it or a named file has changed and is due. If there are
    /// errors, all are reported and the settings in force stay.
    pub async fn check(&mut self, forced: bool) {
        let now = stamps(&self.path, &self.named);
        let is_readable = now.first().is_some_and(Option::is_some);
        let rests = is_readable && now.first() == self.versions.seen().first();
        // A named file that changes all the time does not delay the others. A settings file that is
        // still being written may be a valid part of itself.
        let change = self.versions.check(now.clone());
        let is_due = rests && matches!(change, Change::Settled | Change::Overdue);
        if !forced && !is_due {
            return;
        }
        let path = self.path.clone();
        let reading = tokio::task::spawn_blocking(move || read(&path));
        let trigger = if forced { Trigger::Signal } else { Trigger::FileChange };
        let (named, versions, read) = match reading.await {
            Ok(read) => read,
            Err(error) => (self.named.clone(), now, Err(vec![error.to_string()])),
        };
        self.named = named;
        self.versions = Settling::at(versions);
        match read {
            Ok(verified) => self.put_in_force(verified, trigger).await,
            Err(errors) => {
                let shown = self.path.display();
                let lines = errors.join("\n");
                tracing::error!("{shown} cannot be used, the settings in force stay:\n{lines}");
                self.note(errors, self.proxy.settings.last_reload().needs_restart.clone());
            }
        }
    }

    /// Puts settings in force, then applies their backends.
    async fn put_in_force(&mut self, verified: Verified, trigger: Trigger) {
        let Verified { settings, secrets, models } = verified;
        let in_force = self.proxy.settings.load_full();
        // A name that does not resolve now keeps its addresses.
        let backends = expand::as_in_force(settings.backends, &in_force.values.backends);
        let settings = Settings { backends, ..settings };
        let Reloaded { settings, changed, needs_restart } = reload(&in_force.values, settings);
        let backends = settings.backends.iter().cloned().map(Ok).collect();
        let level = settings.log.level.clone();
        let next = in_force.next(settings, secrets, self.proxy.wall_now(), trigger);
        let number = next.revision;
        let (reply, done) = oneshot::channel();
        let revision = Revision { settings: next, models, reply };
        if self.revisions.send(revision).await.is_err() || done.await.is_err() {
            return;
        }
        log::set_level(&level);
        let (reply, answer) = oneshot::channel();
        let desired = Desired::All(backends);
        let update = FleetUpdate { source: SourceId::File, desired, reply: Some(reply) };
        if self.updates.send(update).await.is_err() {
            return;
        }
        // The control loop logs these errors itself.
        let errors = match answer.await {
            Ok(Err(problems)) => problems.lines().map(str::to_owned).collect(),
            Ok(Ok(_)) | Err(_) => Vec::new(),
        };
        tracing::info!(revision = number, ?changed, "settings are in force");
        if !needs_restart.is_empty() {
            let names = needs_restart.join(", ");
            tracing::warn!(revision = number, "these settings take effect at a restart: {names}");
        }
        self.note(errors, needs_restart);
    }

    fn note(&self, errors: Vec<String>, needs_restart: Vec<String>) {
        let (at, revision) = (self.proxy.wall_now(), self.proxy.settings.load().revision);
        self.proxy.metrics.reloaded(revision, errors.is_empty(), at);
        self.proxy.settings.note(LastReload { at: Some(at), errors, needs_restart });
    }
}

/// Whether the file holds the text that the settings were read from.
#[allow(clippy::disallowed_methods, reason = "the settings file")]
fn is_in_force(path: &Path, settings: &Settings) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text_hash(&text) == settings.text_hash)
}

/// Versions of the settings file and of the files that it names.
fn stamps(path: &Path, named: &[PathBuf]) -> Vec<Stamp> {
    std::iter::once(stamp(path)).chain(named.iter().map(|path| stamp(path))).collect()
}

/// Files whose change is a change of the settings. Key files of sources count for all backends that
/// they find.
fn named(settings: &Settings) -> Vec<PathBuf> {
    let mut all = file_references::reloadable(settings);
    all.extend(file_references::of_backends(&settings.backends));
    all.extend(file_references::of_backends(&settings.sources));
    all.into_iter().map(|one| one.path.to_owned()).collect()
}

/// Files that decide whether the settings can be used.
fn needed(settings: &Settings) -> Vec<PathBuf> {
    let fixed = file_references::fixed(settings).into_iter().map(Path::to_owned);
    named(settings).into_iter().chain(fixed).collect()
}

/// The files that were read, their versions before that, and the settings or all errors.
type Read = (Vec<PathBuf>, Vec<Stamp>, Result<Verified, Vec<String>>);

/// Reads and verifies a file. After an error the files include those that only decide whether the
/// settings can be used, so that a missing one is noticed when it appears.
#[allow(clippy::disallowed_methods, reason = "the settings file")]
fn read(path: &Path) -> Read {
    let version = stamp(path);
    let text = std::fs::read_to_string(path)
        .map_err(|error| vec![format!("cannot read {}: {error}", path.display())]);
    let settings = match text.and_then(|text| parse(&text)) {
        Ok(settings) => Settings { file: Some(path.to_owned()), ..settings },
        Err(errors) => return (Vec::new(), vec![version], Err(errors)),
    };
    let (named, needed) = (named(&settings), needed(&settings));
    let versions = |files: &[PathBuf]| {
        std::iter::once(version).chain(files.iter().map(|path| stamp(path))).collect::<Vec<_>>()
    };
    let (for_named, for_needed) = (versions(&named), versions(&needed));
    let mut settings = settings;
    expand::expand(&mut settings);
    match verify(settings) {
        Ok(verified) => (named, for_named, Ok(verified)),
        Err(errors) => (needed, for_needed, Err(errors)),
    }
}

/// Parses settings.
///
/// # Errors
/// All errors.
pub fn parse(text: &str) -> Result<Settings, Vec<String>> {
    Settings::parse(text).map_err(|all| all.iter().map(ToString::to_string).collect())
}

/// Loads the files that settings name.
///
/// # Errors
/// All files that cannot be used.
pub fn verify(settings: Settings) -> Result<Verified, Vec<String>> {
    let loaded = files::load(&settings);
    let Files { secrets, models, .. } = loaded
        .map_err(|errors| errors.0.iter().map(ToString::to_string).collect::<Vec<String>>())?;
    Ok(Verified { settings, secrets, models })
}
