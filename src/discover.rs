//! Infers a configuration from the engines' own reports, for `serve URL…`, `init` and `doctor`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tidegate_engine::EngineKind;
use tidegate_settings::draft::{ConfigDraft, DraftBackend, DraftModel};
use tidegate_signals::facts::DisaggregationMode;
use tidegate_signals::identity::{Answers, Identity, PATHS, identify};

use tokio::task::JoinSet;

use crate::ask::{Client, engine_url};

/// URLs of engines, and the settings that engines do not report.
#[derive(clap::Args)]
pub struct Discovery {
    /// Engines from which the configuration is inferred: http://host:port
    #[arg(value_name = "URL", value_parser = engine_url)]
    pub urls: Vec<String>,
    /// The served model's tokenizer.json, or the folder that contains it
    #[arg(long, value_name = "PATH", requires = "urls")]
    pub tokenizer: Option<PathBuf>,
    /// File with the engines' own API key
    #[arg(long, value_name = "FILE", requires = "urls")]
    pub engine_key_file: Option<PathBuf>,
    /// CA certificates (PEM) that verify https engines
    #[arg(long, value_name = "FILE", requires = "urls")]
    pub engine_ca_file: Option<PathBuf>,
    /// Longest wait for the first engine; the others get 5 seconds more
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub wait: u64,
}

/// Addresses of the proxy, in place of the configured ones.
#[derive(clap::Args)]
pub struct ListenArgs {
    /// Address for clients, in place of the configured one (default 127.0.0.1:8080)
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<SocketAddr>,
    /// Address for operators, in place of the configured one (default 127.0.0.1:9090)
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
}

/// Time-out of one request to an engine.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two rounds of requests to engines that have not answered.
const AGAIN: Duration = Duration::from_secs(1);
/// Wait for further engines after the first has answered.
const OTHERS: Duration = Duration::from_secs(5);

impl Discovery {
    /// Queries the engines and returns the configuration, with progress on stderr.
    ///
    /// # Errors
    /// No engine answered in time, or an argument is not usable.
    pub fn draft(&self, at: &ListenArgs) -> Result<ConfigDraft, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
        let found = runtime.block_on(self.ask_all())?;
        let mut draft = ConfigDraft {
            listen: at.listen.clone(),
            admin: at.admin,
            ca_file: self.engine_ca_file.clone(),
            ..ConfigDraft::default()
        };
        self.models(&found, &mut draft)?;
        let like = alike(&found);
        for (slot, (url, found)) in self.urls.iter().zip(&found).enumerate() {
            let mut backend = match (found, &like) {
                (Ok(identity), _) => backend(identity),
                (Err(why), Some(like)) => DraftBackend {
                    comments: vec![
                        format!(
                            "NOT UP ({why}): assumed to equal the others. It receives requests"
                        ),
                        "once it answers and its reports match these settings.".to_owned(),
                    ],
                    ..backend(like)
                },
                (Err(why), None) => DraftBackend {
                    engine: EngineKind::Plain.as_str(),
                    comments: vec![format!("NOT UP ({why}): set engine and connector.")],
                    ..DraftBackend::default()
                },
            };
            backend.name = format!("engine-{slot}");
            backend.url.clone_from(url);
            backend.api_key_file.clone_from(&self.engine_key_file);
            draft.backends.push(backend);
        }
        Ok(draft)
    }

    /// A client with the engines' credentials.
    ///
    /// # Errors
    /// A file cannot be used.
    fn client(&self) -> Result<Client, String> {
        let key = self.engine_key_file.as_deref().map(tidegate_proxy::files::secret);
        let key = key.transpose().map_err(|error| error.to_string())?;
        let client = Client::new(TIMEOUT).with_key(key);
        match &self.engine_ca_file {
            Some(path) => client.with_authorities(path, None),
            None => Ok(client),
        }
    }

    /// Queries every engine until all have answered or the wait is over.
    async fn ask_all(&self) -> Result<Vec<Result<Identity, String>>, String> {
        let client = self.client()?;
        let began = Instant::now();
        let mut end = began + Duration::from_secs(self.wait);
        let mut found: Vec<Result<Identity, String>> =
            self.urls.iter().map(|_| Err("no answer".to_owned())).collect();
        let mut announced = false;
        loop {
            let mut asking = JoinSet::new();
            for (slot, url) in
                self.urls.iter().enumerate().filter(|(slot, _)| found[*slot].is_err())
            {
                let (client, url) = (client.clone(), url.clone());
                asking.spawn(async move { (slot, ask(&client, &url).await) });
            }
            for (slot, answer) in asking.join_all().await {
                found[slot] = answer;
            }
            let missing: Vec<&str> = self
                .urls
                .iter()
                .zip(&found)
                .filter(|(_, found)| found.is_err())
                .map(|(url, _)| url.as_str())
                .collect();
            if missing.is_empty() {
                return Ok(found);
            }
            if missing.len() < found.len() {
                end = end.min(Instant::now() + OTHERS);
            }
            if !announced {
                eprintln!("waiting up to {} s for {}", self.wait, missing.join(", "));
                announced = true;
            }
            if Instant::now() >= end {
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
        if found.iter().any(Result::is_ok) {
            return Ok(found);
        }
        let line = |(url, found): (&String, &Result<Identity, String>)| {
            format!("  {url}: {}", found.as_ref().err().map_or("", String::as_str))
        };
        let lines: Vec<String> = self.urls.iter().zip(&found).map(line).collect();
        Err(format!("no engine answered within {} s:\n{}", self.wait, lines.join("\n")))
    }

    /// Adds the model with its tokenizer, or notes on how prompts are counted without one.
    fn models(
        &self,
        found: &[Result<Identity, String>],
        draft: &mut ConfigDraft,
    ) -> Result<(), String> {
        let served = found.iter().flatten().flat_map(|identity| &identity.facts.models);
        let mut names: Vec<&str> = served.map(|model| model.id.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let Some(path) = &self.tokenizer else {
            draft.notes = vec![
                "Without a tokenizer, prompt tokens are estimated from bytes; the counts that engines report".to_owned(),
                "correct the estimate. Prefix routing by KV events needs the tokenizer:".to_owned(),
            ];
            return Ok(());
        };
        match names[..] {
            [name] => {
                let tokenizer = tokenizer_in(path)?;
                draft.models.push(DraftModel { name: name.to_owned(), tokenizer });
                Ok(())
            }
            [] => Err("--tokenizer: no engine has reported its model".to_owned()),
            _ => Err(format!(
                "--tokenizer applies to one model, but the engines serve {}: write the file with \
                 `tidegate init` and add a [[models]] table for each",
                names.join(", ")
            )),
        }
    }
}

fn tokenizer_in(path: &Path) -> Result<PathBuf, String> {
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
    match file.is_file() {
        true => Ok(file),
        false => Err(format!("--tokenizer: {} is not a file", file.display())),
    }
}

/// Queries the identity of one engine.
///
/// # Errors
/// It does not answer.
pub async fn ask(client: &Client, url: &str) -> Result<Identity, String> {
    let mut answers = Answers::new();
    let mut locked = None;
    for path in PATHS {
        // The first path shows whether the engine is running.
        let answer = client.get(url, path).await;
        match answer {
            Ok(answer) if answer.status.is_success() => {
                answers.insert(path, answer.body.to_vec());
            }
            Ok(answer) if matches!(answer.status.as_u16(), 401 | 403) => {
                locked = Some(answer.status.as_u16());
            }
            Ok(answer) if path == PATHS[0] && answer.status.is_server_error() => {
                return Err(format!("{path} answers {}", answer.status.as_u16()));
            }
            Ok(_) => {}
            Err(error) if path == PATHS[0] => return Err(error.to_string()),
            Err(_) => {}
        }
    }
    let mut identity = identify(&answers);
    identity.facts.key_required = locked;
    Ok(identity)
}

/// Returns the identity that all answering engines share.
fn alike(found: &[Result<Identity, String>]) -> Option<Identity> {
    let mut up = found.iter().flatten();
    let first = up.next()?;
    let same = |other: &Identity| other.kind == first.kind && other.connector == first.connector;
    up.all(same).then(|| first.clone())
}

fn backend(identity: &Identity) -> DraftBackend {
    let role = match identity.facts.mode {
        Some(DisaggregationMode::Half(role)) => Some(role),
        _ => None,
    };
    DraftBackend {
        engine: identity.kind.as_str(),
        connector: identity.connector,
        kv_role: identity.kv_role.clone(),
        bootstrap_port: identity.bootstrap_port,
        role,
        role_switch: identity.role_switch,
        streams_max: identity.streams_max,
        comments: comments(identity),
        ..DraftBackend::default()
    }
}

/// Reported facts of an engine, as comments of the configuration.
fn comments(identity: &Identity) -> Vec<String> {
    let facts = &identity.facts;
    let version = facts.version.as_deref().unwrap_or("of unknown version");
    let models = facts.models.iter().map(|model| match model.max_model_len {
        Some(most) => format!("{} ({most} tokens)", model.id),
        None => model.id.clone(),
    });
    let models: Vec<String> = models.collect();
    let served = match models.is_empty() {
        true => "no model reported".to_owned(),
        false => models.join(", "),
    };
    let mut lines = vec![format!("{} {version}: {served}", identity.kind.as_str())];
    if let Some(status) = facts.key_required {
        lines.push(format!(
            "The engine answers {status} without its API key: set --engine-key-file."
        ));
    }
    let splits =
        matches!(identity.kind, EngineKind::Vllm | EngineKind::Sglang | EngineKind::Trtllm);
    if identity.connector.is_none() && splits {
        lines.push(
            "No KV connector reported: all requests run colocated. OffloadingConnector, LMCache"
                .to_owned(),
        );
        lines.push(
            "and MooncakeStore appear in no metric: set connector if the engine has one."
                .to_owned(),
        );
    }
    lines
}
