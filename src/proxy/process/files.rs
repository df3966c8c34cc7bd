//! Loads and verifies every file that the settings name, before anything listens. `tidegate check`
//! and `tidegate serve` call the same function and therefore agree on errors. All errors are
//! collected, each with the key of the setting that names the file.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tidegate_filters::{ApiKey, ModelTokenizer, TokenizerError};
use tidegate_settings::{BackendSettings, ModelSettings, Settings, TlsSettings};
use tokio_rustls::rustls::RootCertStore;

use crate::control::KnownModel;
use crate::control::operator_roles::OperatorRoles;
use crate::control::operator_roles::StateError;
use crate::dispatch::settings_in_force::Secrets;
use crate::tls::{Refresh, ServerTls, TlsError};
use crate::upstream::EngineTls;

/// ALPN protocols of the data port.
const H2_H1: &[&[u8]] = &[b"h2", b"http/1.1"];
/// ALPN protocols between gateways.
const H2: &[&[u8]] = &[b"h2"];
/// ALPN protocols of the admin port.
const H1: &[&[u8]] = &[b"http/1.1"];
/// Shortest secret in a key file, in bytes: 128 bits if it is random.
const SECRET_BYTES_MIN: usize = 16;

/// A file that cannot be used, and the setting that names it.
#[derive(Debug)]
pub struct FileError {
    /// The setting's path, for example `auth.keys[0].key_file`.
    pub key: String,
    /// Why the file cannot be used.
    pub problem: FileProblem,
}

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub enum FileProblem {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The state file cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// It cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A key file without a usable secret. The message never quotes the secret.
    #[error("{path} {problem}")]
    Secret {
        /// The file.
        path: PathBuf,
        /// The cause, which follows the path in a sentence.
        problem: &'static str,
    },
    /// A broken tokenizer or tokenizer configuration.
    #[error("{path}: {source}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: TokenizerError,
    },
    /// A broken certificate chain, private key or set of certificate authorities.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// All errors, displayed one a line.
#[derive(Debug)]
pub struct FileErrors(pub Vec<FileError>);

impl std::error::Error for FileErrors {}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

impl fmt::Display for FileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// The verified contents of every file.
pub struct Files {
    /// Roles set by operators before the restart.
    pub operator_roles: OperatorRoles,
    /// API keys of clients and tokens of the admin address.
    pub secrets: Secrets,
    /// API keys of engines, by backend slot.
    pub engine_keys: Vec<Option<String>>,
    /// HMAC keys of hand-offs, by backend slot.
    pub handoff_keys: Vec<Option<Box<[u8]>>>,
    /// The models of the settings with their tokenizers.
    pub models: Vec<KnownModel>,
    /// TLS towards clients.
    pub server_tls: Option<ServerTls>,
    /// TLS of the admin address.
    pub admin_tls: Option<ServerTls>,
    /// TLS towards engines, if a backend's URL is https or `upstream.ca_file` is set.
    pub connector: Option<EngineTls>,
    /// Token and TLS between gateways.
    pub gateways: GatewayFiles,
    /// Certificates that are reloaded when their files change.
    pub watched: Vec<Arc<dyn Refresh>>,
}

/// Files of `[gateways]`.
#[derive(Clone, Default)]
pub struct GatewayFiles {
    /// Bearer token.
    pub token: Option<String>,
    /// TLS of the address for other gateways.
    pub tls: Option<ServerTls>,
    /// TLS towards other gateways.
    pub connector: Option<EngineTls>,
}

/// Loads and verifies every file that the settings name.
///
/// # Errors
/// All problems of all files.
pub fn load(settings: &Settings) -> Result<Files, FileErrors> {
    let mut found = LoadedFiles::default();
    let keys = client_keys(settings, &mut found);
    let engine_keys = engine_keys(settings, &mut found);
    let handoff_keys = handoff_keys(settings, &mut found);
    let models = models(settings, &mut found);
    let server_tls = found.server_tls("server.tls", settings.server.tls.as_ref(), H2_H1);
    let admin_tls = found.server_tls("admin.tls", settings.admin.tls.as_ref(), H1);
    let token = settings.admin.token.as_ref().map(|token| token.0.clone());
    let token_file = settings.admin.token_file.as_deref();
    let token_file = token_file.and_then(|path| found.take("admin.token_file", secret(path)));
    let admin_tokens = token.into_iter().chain(token_file).collect();
    let connector = connector(settings, &mut found);
    let gateways = gateways(settings, &mut found);
    let operator_roles = state(settings, &mut found);
    if let Some(path) = &settings.planner.record {
        found.take("planner.record", writable(path));
    }
    if let Some(path) = &settings.server.upgrade_socket {
        found.take("server.upgrade_socket", has_directory(path));
    }
    match found.errors.is_empty() {
        true => Ok(Files {
            operator_roles,
            secrets: Secrets { keys, admin_tokens },
            engine_keys,
            handoff_keys,
            models,
            server_tls,
            admin_tls,
            connector,
            gateways,
            watched: found.watched,
        }),
        false => Err(FileErrors(found.errors)),
    }
}

/// Errors and loaded certificates so far.
#[derive(Default)]
struct LoadedFiles {
    errors: Vec<FileError>,
    watched: Vec<Arc<dyn Refresh>>,
}

impl LoadedFiles {
    fn take<T>(
        &mut self,
        key: impl Into<String>,
        loaded: Result<T, impl Into<FileProblem>>,
    ) -> Option<T> {
        match loaded {
            Ok(loaded) => Some(loaded),
            Err(problem) => {
                self.errors.push(FileError { key: key.into(), problem: problem.into() });
                None
            }
        }
    }

    /// Returns a secret from the settings or from a file that they name.
    fn given(
        &mut self,
        value: Option<&String>,
        file: Option<&Path>,
        read: impl FnOnce(&Path) -> Result<String, FileProblem>,
        setting: impl FnOnce() -> String,
    ) -> Option<String> {
        match (value, file) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(path)) => self.take(setting(), read(path)),
            (None, None) => None,
        }
    }

    fn server_tls(
        &mut self,
        section: &str,
        tls: Option<&TlsSettings>,
        alpn: &'static [&'static [u8]],
    ) -> Option<ServerTls> {
        let tls = self.take(section, ServerTls::load(section, tls?, alpn))?;
        self.watched.push(tls.watched());
        Some(tls)
    }
}

/// Reads the roles set by operators. The file must be readable and writable; otherwise a restart
/// would discard them.
fn state(settings: &Settings, found: &mut LoadedFiles) -> OperatorRoles {
    let path = settings.admin.state_file.as_deref();
    let operator_roles = found.take("admin.state_file", OperatorRoles::read(path));
    if let (Some(path), Some(_)) = (path, &operator_roles) {
        found.take("admin.state_file", writable(path));
    }
    operator_roles.unwrap_or_default()
}

fn client_keys(settings: &Settings, found: &mut LoadedFiles) -> Vec<ApiKey> {
    let mut keys = Vec::with_capacity(settings.auth.keys.len());
    for (i, key) in settings.auth.keys.iter().enumerate() {
        let setting = || format!("auth.keys[{i}].key_file");
        let secret = found.given(key.key.as_ref(), key.key_file.as_deref(), secret, setting);
        keys.extend(secret.map(|secret| ApiKey { name: key.name.clone(), key: secret }));
    }
    keys
}

fn engine_keys(settings: &Settings, found: &mut LoadedFiles) -> Vec<Option<String>> {
    let backends = settings.backends.iter().enumerate();
    let key = |(i, backend): (usize, &BackendSettings)| {
        let value = backend.api_key.as_ref().map(|key| &key.0);
        let setting = || format!("backends[{i}].api_key_file");
        found.given(value, backend.api_key_file.as_deref(), engine_secret, setting)
    };
    backends.map(key).collect()
}

fn handoff_keys(settings: &Settings, found: &mut LoadedFiles) -> Vec<Option<Box<[u8]>>> {
    let backends = settings.backends.iter().enumerate();
    let key = |(i, backend): (usize, &BackendSettings)| {
        let value = backend.disagg_key.as_ref().map(|key| &key.0);
        let setting = || format!("backends[{i}].disagg_key_file");
        let key = found.given(value, backend.disagg_key_file.as_deref(), engine_secret, setting);
        key.map(|key| key.into_bytes().into())
    };
    backends.map(key).collect()
}

/// The API key of one engine and its HMAC key of hand-offs.
pub(crate) type BackendKeys = (Option<String>, Option<Box<[u8]>>);

/// The keys of a backend that joins.
///
/// # Errors
/// The files that cannot be used.
pub(crate) fn backend_keys(backend: &BackendSettings) -> Result<BackendKeys, FileErrors> {
    let settings = Settings { backends: vec![backend.clone()], ..Settings::default() };
    let mut found = LoadedFiles::default();
    let (key, handoff) = (engine_keys(&settings, &mut found), handoff_keys(&settings, &mut found));
    match found.errors.is_empty() {
        true => Ok((key.into_iter().next().flatten(), handoff.into_iter().next().flatten())),
        false => Err(FileErrors(found.errors)),
    }
}

/// TLS towards engines, shared by every https backend.
fn connector(settings: &Settings, found: &mut LoadedFiles) -> Option<EngineTls> {
    let https = settings.backends.iter().any(|backend| backend.is_https());
    if !https && settings.upstream.ca_file.is_none() {
        return None;
    }
    let connector = found.take("upstream", EngineTls::load(&settings.upstream))?;
    found.watched.push(connector.watched());
    Some(connector)
}

fn gateways(settings: &Settings, found: &mut LoadedFiles) -> GatewayFiles {
    let gateways = &settings.gateways;
    let token = gateways.token_file.as_deref();
    let token = token.and_then(|path| found.take("gateways.token_file", secret(path)));
    let tls = found.server_tls("gateways.tls", gateways.tls.as_ref(), H2);
    let connector = gateways.tls.as_ref().and_then(|tls| {
        let connector = found.take("gateways.tls", EngineTls::among_peers("gateways.tls", tls))?;
        found.watched.push(connector.watched());
        Some(connector.named(gateways.server_name.as_deref()))
    });
    GatewayFiles { token, tls, connector }
}

/// The models and their tokenizers. A tokenizer without a fast implementation is logged, and
/// prompts are estimated by their bytes; a file that cannot be read is an error.
fn models(settings: &Settings, found: &mut LoadedFiles) -> Vec<KnownModel> {
    let mut known = Vec::with_capacity(settings.models.len());
    for (i, model) in settings.models.iter().enumerate() {
        let tokenizer = match tokenizer(i, model, found) {
            Some(Ok(tokenizer)) => {
                for note in tokenizer.notes() {
                    tracing::warn!(model = %model.name, "{note}");
                }
                Some(Arc::new(tokenizer))
            }
            Some(Err(error)) => {
                tracing::warn!(model = %model.name, "prompt tokens are estimated: {error}");
                None
            }
            None => None,
        };
        let name = model.name.as_str().into();
        let aliases = model.aliases.iter().map(|alias| alias.as_str().into()).collect();
        known.push(KnownModel { name, aliases, max_model_len: model.max_model_len, tokenizer });
    }
    known
}

/// Returns `None` if no tokenizer is configured or an error was recorded, `Some(Err)` if the
/// tokenizer has no fast implementation.
fn tokenizer(
    i: usize,
    model: &ModelSettings,
    found: &mut LoadedFiles,
) -> Option<Result<ModelTokenizer, TokenizerError>> {
    let key = |field: &str| format!("models[{i}].{field}");
    let path = model.tokenizer.as_ref()?;
    let json = found.take(key("tokenizer"), bytes(path));
    let config = match &model.tokenizer_config {
        Some(path) => Some(found.take(key("tokenizer_config"), bytes(path))?),
        // Optional file beside the tokenizer.
        None => bytes(&path.with_file_name("tokenizer_config.json")).ok(),
    };
    let template = match &model.chat_template {
        Some(path) => Some(found.take(key("chat_template"), text(path))?),
        None => None,
    };
    let loaded = ModelTokenizer::load(&json?, config.as_deref(), template.as_deref());
    let cache = usize::from(model.tokenizer_cache_mib) << 20;
    match loaded {
        Err(source @ TokenizerError::Unreadable { .. }) => {
            let problem = FileProblem::Tokenizer { path: path.clone(), source };
            found.take::<()>(key("tokenizer"), Err(problem));
            None
        }
        loaded => Some(loaded.map(|loaded| loaded.with_cache(cache))),
    }
}

/// The single secret in a key file. A byte order mark, blanks and line ends around it, which
/// editors and Windows tools add, are removed. More than one line is an error, as no header value
/// can contain a line end.
///
/// # Errors
/// [`FileProblem::Read`], [`FileProblem::Secret`].
pub fn secret(path: &Path) -> Result<String, FileProblem> {
    one_of(path, secret_in)
}

/// Like [`secret`], for a key that an engine was started with: its length is not checked.
fn engine_secret(path: &Path) -> Result<String, FileProblem> {
    one_of(path, line_in)
}

fn one_of(
    path: &Path,
    find: impl Fn(&str) -> Result<&str, &'static str>,
) -> Result<String, FileProblem> {
    let text = text(path)?;
    let secret = find(&text).map(str::to_owned);
    secret.map_err(|problem| FileProblem::Secret { path: path.to_owned(), problem })
}

fn secret_in(text: &str) -> Result<&str, &'static str> {
    let secret = line_in(text)?;
    match secret.len() >= SECRET_BYTES_MIN {
        true => Ok(secret),
        false => Err("holds a key that can be guessed: shorter than 16 bytes"),
    }
}

fn line_in(text: &str) -> Result<&str, &'static str> {
    let secret = text.trim_start_matches('\u{feff}').trim();
    if secret.is_empty() {
        return Err("is empty, expected one key");
    }
    if secret.contains(['\n', '\r']) {
        return Err("holds more than one line, expected one key");
    }
    if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            "holds a key that no HTTP header can carry: only visible ASCII without blanks is allowed",
        );
    }
    Ok(secret)
}

/// The certificate authorities in a PEM file.
///
/// # Errors
/// [`FileProblem::Tls`].
pub fn authorities(path: &Path) -> Result<RootCertStore, FileProblem> {
    Ok(crate::tls::read_authorities(path)?)
}

/// Largest file that is read: ten times the largest `tokenizer.json` in use.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Reads a regular file. Devices and pipes are refused before they are opened: settings sent to the
/// admin address may name any path, and such a read may never end.
#[allow(clippy::disallowed_methods, reason = "files that the settings name are read here")]
fn bytes(path: &Path) -> Result<Vec<u8>, FileProblem> {
    let read = || {
        if !std::fs::metadata(path)?.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        // Files of /proc report a size of 0 and may be unbounded.
        std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > FILE_BYTES_MAX {
            true => Err(std::io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes"))),
            false => Ok(bytes),
        }
    };
    read().map_err(|source| FileProblem::Read { path: path.to_owned(), source })
}

pub(crate) fn text(path: &Path) -> Result<String, FileProblem> {
    String::from_utf8(bytes(path)?).map_err(|error| FileProblem::Read {
        path: path.to_owned(),
        source: std::io::Error::other(error),
    })
}

fn has_directory(path: &Path) -> Result<(), FileProblem> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match directory.is_none_or(Path::is_dir) {
        true => Ok(()),
        false => Err(FileProblem::Write {
            path: path.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        }),
    }
}

/// Checks that the file's directory accepts new files, because a state file is replaced by a
/// rename. The check leaves no file behind.
#[allow(clippy::disallowed_methods, reason = "a file that the settings name")]
fn writable(path: &Path) -> Result<(), FileProblem> {
    let mut probe = path.as_os_str().to_owned();
    probe.push(format!(".check-{}", std::process::id()));
    let failed = |source| FileProblem::Write { path: path.to_owned(), source };
    if path.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    std::fs::write(&probe, b"").map_err(failed)?;
    std::fs::remove_file(&probe).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_refused_and_not_read() {
        let error = bytes(Path::new("/dev/zero")).expect_err("a device is refused");
        assert_eq!(error.to_string(), "cannot read /dev/zero: not a regular file");
    }

    #[test]
    fn a_key_file_holds_one_secret_of_16_visible_bytes() {
        let good = "0123456789abcdef";
        for text in [
            good.to_owned(),
            format!("{good}\n"),
            format!("{good}\r\n"),
            format!("\u{feff}{good}"),
            format!("\u{feff}  {good}\t\r\n\n"),
        ] {
            assert_eq!(secret_in(&text), Ok(good), "{text:?}");
        }
        for (text, word) in [
            ("", "empty"),
            ("\u{feff}\r\n", "empty"),
            ("0123456789abcdef\nfedcba9876543210\n", "more than one line"),
            ("0123456789abcdef\rfedcba9876543210", "more than one line"),
            ("0123456789 abcdef", "header"),
            ("0123456789abcdé", "header"),
            ("0123456789abcde", "guessed"),
        ] {
            assert!(secret_in(text).unwrap_err().contains(word), "{text:?}");
        }
    }
}
