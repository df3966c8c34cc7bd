//! `tidegate doctor`: checks the engines and this machine against a configuration. Each check is
//! one line, with advice if it fails.

mod engines;
mod handoff;
mod host;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod tokenizer;

use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tidegate_settings::{BackendSettings, KubernetesSettings, Settings};

use crate::ask::Client;
use crate::discover::{Discovery, ListenArgs};
use crate::terminal::{Paint, Style};
use crate::{init, serve};

/// Check engines and this machine: reachability, versions, connectors, ports, tokenizer, clocks,
/// limits, and a trial hand-off between each pair of engines; with Kubernetes also its permissions,
/// labels and selectors, and the engines in the pods.
///
/// A trial hand-off is one short prompt with one output token. Exit code: 0 without errors, 1
/// otherwise.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", required_unless_present = "urls", conflicts_with = "urls")]
    config: Option<PathBuf>,
    #[command(flatten)]
    engines: Discovery,
    /// Send no prompt: leave out the trial hand-offs
    #[arg(long)]
    no_trial: bool,
    /// Time limit of a trial hand-off
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    trial_seconds: u64,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// Result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    Warning,
    Error,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub level: Level,
    /// A backend, a pair of backends, `kubernetes` or `host`.
    pub subject: String,
    pub check: &'static str,
    pub detail: String,
    /// The recommended action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// Findings in the order of the checks.
#[derive(Default, Serialize)]
pub struct DoctorReport {
    pub findings: Vec<Finding>,
}

impl DoctorReport {
    pub fn ok(&mut self, subject: &str, check: &'static str, detail: impl Into<String>) {
        self.add(Level::Ok, subject, check, detail.into(), None);
    }

    pub fn warn(
        &mut self,
        subject: &str,
        check: &'static str,
        detail: impl Into<String>,
        advice: &str,
    ) {
        self.add(Level::Warning, subject, check, detail.into(), Some(advice));
    }

    pub fn error(
        &mut self,
        subject: &str,
        check: &'static str,
        detail: impl Into<String>,
        advice: &str,
    ) {
        self.add(Level::Error, subject, check, detail.into(), Some(advice));
    }

    fn add(
        &mut self,
        level: Level,
        subject: &str,
        check: &'static str,
        detail: String,
        advice: Option<&str>,
    ) {
        let (subject, advice) = (subject.to_owned(), advice.map(str::to_owned));
        // It may be an engine's own words.
        let detail = crate::operate::without_controls(&detail);
        self.findings.push(Finding { level, subject, check, detail, advice });
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }
}

/// Time-out of one request to an engine.
const TIMEOUT: Duration = Duration::from_secs(5);

/// `tidegate doctor`
pub fn run(args: &Args) -> ExitCode {
    let mut report = DoctorReport::default();
    if let Some(settings) = settings(args, &mut report) {
        host::check(&settings, &mut report);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(engines(args, &settings, &mut report)),
            Err(error) => report.error("host", "runtime", error.to_string(), "free some memory"),
        }
    }
    let text = if args.json { json(&report) } else { lines(&report, Paint::stdout()) };
    // A closed stdout (EPIPE) is ignored.
    std::io::stdout().write_all(text.as_bytes()).ok();
    match report.count(Level::Error) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The configuration, from its file or inferred.
fn settings(args: &Args, report: &mut DoctorReport) -> Option<Settings> {
    let advice = "correct the line; docs/reference/configuration.md describes every key";
    let read = match &args.config {
        Some(path) => serve::read(path),
        None => {
            let at = ListenArgs { listen: Vec::new(), admin: None };
            args.engines.draft(&at).and_then(|draft| init::parsed(&draft.to_toml()))
        }
    };
    match read {
        Ok(settings) => {
            let source = args.config.as_ref().map_or("inferred", |_| "valid");
            report.ok(
                "host",
                "configuration",
                format!("{source}, backends: {}", settings.backends.len()),
            );
            Some(settings)
        }
        Err(problems) => {
            let advice = if args.config.is_some() { advice } else { "start the engines first" };
            for line in problems.lines() {
                report.error("host", "configuration", line, advice);
            }
            None
        }
    }
}

async fn engines(args: &Args, settings: &Settings, report: &mut DoctorReport) {
    let mut settings = settings.clone();
    let pods = pods(&settings, report).await;
    settings.backends.extend(pods);
    let settings = &settings;
    let mut reached = Vec::new();
    for backend in &settings.backends {
        let client = match client(settings, backend, TIMEOUT) {
            Ok(client) => client,
            Err(problem) => {
                report.error(&backend.name, "credentials", problem, "correct the file");
                continue;
            }
        };
        if let Some(model) = engines::check(settings, backend, &client, report).await {
            reached.push((backend, model));
        }
    }
    if args.no_trial {
        return;
    }
    let limit = Duration::from_secs(args.trial_seconds);
    for (from, model) in &reached {
        for (to, _) in reached.iter().filter(|(to, _)| to.name != from.name) {
            handoff::check(settings, (from, to), model, limit, report).await;
        }
    }
}

/// Returns the backends that pods are at present.
#[cfg(feature = "kubernetes")]
async fn pods(settings: &Settings, report: &mut DoctorReport) -> Vec<BackendSettings> {
    match uses_kubernetes(settings) {
        true => kubernetes::check(settings, report).await,
        false => Vec::new(),
    }
}

/// Reports that this build has no client for an API server.
#[cfg(not(feature = "kubernetes"))]
async fn pods(settings: &Settings, report: &mut DoctorReport) -> Vec<BackendSettings> {
    if uses_kubernetes(settings) {
        let advice = "install a tidegate with the feature `kubernetes`";
        report.error(
            "kubernetes",
            "build",
            "this build of tidegate has no Kubernetes client",
            advice,
        );
    }
    Vec::new()
}

fn uses_kubernetes(settings: &Settings) -> bool {
    settings.kubernetes != KubernetesSettings::default()
        || settings.sidecar.as_ref().is_some_and(|sidecar| sidecar.inference_pool.is_some())
        || settings.gateways.kubernetes.is_some()
        || settings.sources.iter().any(|source| source.kubernetes.is_some())
}

/// A client with the credentials of a backend.
fn client(
    settings: &Settings,
    backend: &BackendSettings,
    timeout: Duration,
) -> Result<Client, String> {
    let key = match (&backend.api_key, &backend.api_key_file) {
        (Some(key), _) => Some(key.0.clone()),
        (None, Some(path)) => {
            Some(tidegate_proxy::files::secret(path).map_err(|error| error.to_string())?)
        }
        (None, None) => None,
    };
    let client = Client::new(timeout).with_key(key);
    match &settings.upstream.ca_file {
        Some(path) if backend.is_https() => {
            client.with_authorities(path, backend.server_name.clone())
        }
        _ => Ok(client),
    }
}

fn json(report: &DoctorReport) -> String {
    let value = serde_json::json!({
        "errors": report.count(Level::Error),
        "warnings": report.count(Level::Warning),
        "findings": report.findings,
    });
    format!("{value:#}\n")
}

fn lines(report: &DoctorReport, paint: Paint) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let (level, style) = match finding.level {
            Level::Ok => ("ok", Style::Green),
            Level::Warning => ("warning", Style::Yellow),
            Level::Error => ("error", Style::Red),
        };
        let level = paint.style(style, &format!("{level:<8}"));
        let Finding { subject, check, detail, .. } = finding;
        text += &format!("{level} {subject:<24} {check:<14} {detail}\n");
        if let Some(advice) = &finding.advice {
            text += &format!("{:<9}{:<24} {:<14} → {advice}\n", "", "", "");
        }
    }
    let (errors, warnings) = (report.count(Level::Error), report.count(Level::Warning));
    text + &format!("errors: {errors}, warnings: {warnings}\n")
}
