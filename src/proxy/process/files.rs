//! Loads and verifies every file that the settings name, before anything listens. `tidegate check`
//! and `tidegate serve` call the same function and therefore agree on errors. All errors are
//! collected, each with the key of the setting that names the file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidegate_filters::{ApiKey, ModelTokenizer, TokenizerError};
use tidegate_settings::{BackendSettings, ModelSettings, Settings, TlsSettings};
use tokio::time::Instant;

use crate::control::KnownModel;
use crate::control::operator_roles::OperatorRoles;
use crate::dispatch::settings_in_force::Secrets;
use crate::process::gateways::{GatewayToken, TokenPair};
use crate::runtime::reloadable::{Refresh, Reloadable};
use crate::tls::ServerTls;
use crate::upstream::EngineTls;

pub use super::file_access::{FileProblem, authorities, secret, text};
use super::file_access::{bytes, engine_secret, has_directory, writable};

/// ALPN protocols of the data port.
const H2_H1: &[&[u8]] = &[b"h2", b"http/1.1"];
/// ALPN protocols between gateways.
const H2: &[&[u8]] = &[b"h2"];
/// ALPN protocols of the admin port.
const H1: &[&[u8]] = &[b"http/1.1"];
/// A file that cannot be used, and the setting that names it.
#[derive(Debug)]
pub struct FileError {
    /// The setting's path, for example `auth.keys[0].key_file`.
    pub key: String,
    /// Why the file cannot be used.
    pub problem: FileProblem,
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
    /// Certificates and tokens that are reloaded when their files change.
    pub watched: Vec<Arc<dyn Refresh>>,
}

/// Files of `[gateways]`.
#[derive(Clone, Default)]
pub struct GatewayFiles {
    /// Bearer token.
    pub token: Option<GatewayToken>,
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
    let token = gateways.token_file.clone().and_then(|path| gateway_token(path, found));
    let tls = found.server_tls("gateways.tls", gateways.tls.as_ref(), H2);
    let connector = gateways.tls.as_ref().and_then(|tls| {
        let connector = found.take("gateways.tls", EngineTls::among_peers("gateways.tls", tls))?;
        found.watched.push(connector.watched());
        Some(connector.named(gateways.server_name.as_deref()))
    });
    GatewayFiles { token, tls, connector }
}

fn gateway_token(path: PathBuf, found: &mut LoadedFiles) -> Option<GatewayToken> {
    let setting = "gateways.token_file";
    let files = vec![path.clone()];
    let load = move |before: Option<&TokenPair>| {
        Ok::<_, FileProblem>(TokenPair::new(secret(&path)?, before, Instant::now()))
    };
    let token = Reloadable::load(setting.to_owned(), files, Box::new(load));
    let token = Arc::new(found.take(setting, token)?);
    found.watched.push(Arc::<Reloadable<_, _>>::clone(&token));
    Some(token)
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
