//! `tidegate replay`: sends an open-loop load to a running server and reports the result.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tidegate_load::{LoadConfig, LoadProgress, Target, TargetError, run as load};
use tidegate_sim::{Report, Trace, TraceError, UnusableTrace, live_page};
use tidegate_types::{Seconds, Slo, Tokens};

/// Replay a trace against a server.
#[derive(clap::Args)]
pub struct Args {
    /// A trace; several are merged by arrival time
    #[arg(long, value_name = "FILE", required = true)]
    trace: Vec<PathBuf>,
    /// The server's base URL
    #[arg(long, value_name = "URL")]
    target: String,
    /// Model name in the requests
    #[arg(long)]
    model: String,
    /// Factor on the trace's arrival rate
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// Use /v1/completions instead of /v1/chat/completions
    #[arg(long)]
    completions: bool,
    /// File with the API key
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Factor on the trace's output lengths
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    output_scale: f64,
    /// Maximum prompt length in tokens; longer prompts are truncated
    #[arg(long, default_value_t = 32_000, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    prompt_max: u64,
    /// Replay only the first SECONDS of the trace
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Time allowed for requests to end after the last arrival
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    drain: f64,
    /// TTFT target
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    slo_ttft: f64,
    /// TPOT target
    #[arg(long, default_value_t = 0.03, value_name = "SECONDS")]
    slo_tpot: f64,
    /// Target for the largest gap between two chunks of an answer (ITL); default: none
    #[arg(long, value_name = "SECONDS")]
    slo_itl: Option<f64>,
    /// File for a self-contained HTML page with distributions and latencies over time
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// File to which the report is written as JSON; `-`: standard output, in place of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Send delay above which a warning is printed: the client machine then affects the figures.
const LATE: Seconds = Seconds(0.05);

/// Longest drain: one day, in seconds.
const DRAIN_MAX: f64 = 86_400.0;

/// Failure of a replay.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// A file.
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    /// A trace cannot be parsed.
    #[error("{path}: {source}")]
    Trace { path: PathBuf, source: TraceError },
    /// A file without requests.
    #[error("{0} has no requests")]
    Empty(PathBuf),
    /// The trace cannot be replayed at the chosen rate.
    #[error(transparent)]
    Unusable(#[from] UnusableTrace),
    /// The target is invalid.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The runtime cannot start.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    /// An argument is invalid.
    #[error("{0}")]
    Arguments(String),
}

/// Read and merge traces.
pub fn traces(paths: &[PathBuf]) -> Result<Trace, ReplayError> {
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ReplayError::File { path: path.clone(), source })?;
        let parsed = Trace::parse(&text);
        let trace = parsed.map_err(|source| ReplayError::Trace { path: path.clone(), source })?;
        match trace.arrivals.is_empty() {
            true => Err(ReplayError::Empty(path.clone())),
            false => Ok(trace),
        }
    };
    let read: Result<Vec<Trace>, ReplayError> = paths.iter().map(read).collect();
    Ok(Trace::merge(read?))
}

/// Returns the names of files without their folders.
pub fn file_names(paths: &[PathBuf]) -> Vec<String> {
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    paths.iter().map(name).collect()
}

/// Does standard output get JSON in place of the table?
pub fn is_stdout(path: Option<&Path>) -> bool {
    path.is_some_and(|path| path == Path::new("-"))
}

/// Write reports, one object a line, to a file or for `-` to standard output.
pub fn write_json(path: &Path, reports: &[Report]) -> Result<(), ReplayError> {
    let lines: Vec<String> =
        reports.iter().filter_map(|report| serde_json::to_string(report).ok()).collect();
    let text = lines.join("\n") + "\n";
    if is_stdout(Some(path)) {
        // A closed stdout (EPIPE) is ignored.
        std::io::stdout().write_all(text.as_bytes()).ok();
        return Ok(());
    }
    std::fs::write(path, text).map_err(|source| ReplayError::File { path: path.to_owned(), source })
}

/// Prints reports as a table.
pub fn print_table(reports: &[Report]) {
    let mut out = std::io::stdout().lock();
    let mut line = |text: String| {
        // A closed stdout (EPIPE) is ignored.
        writeln!(out, "{text}").ok();
    };
    line(format!(
        "{:<16} {:>8} {:>10} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6} {:>6}",
        "policy",
        "requests",
        "attainment",
        "ttft",
        "tpot",
        "ttft p50",
        "ttft p99",
        "tpot p50",
        "tpot p99",
        "itl p99",
        "itl max",
        "flips",
        "errors"
    ));
    for r in reports {
        line(format!(
            "{:<16} {:>8} {:>10} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6} {:>6}",
            r.policy,
            r.requests,
            share(r.attainment),
            share(r.ttft_attainment),
            share(r.tpot_attainment),
            millis(r.ttft_p50, 0),
            millis(r.ttft_p99, 0),
            millis(r.tpot_p50, 1),
            millis(r.tpot_p99, 1),
            millis(r.itl_p99, 1),
            millis(r.itl_max, 0),
            r.flips,
            r.errors.unwrap_or(0)
        ));
    }
}

/// Missing values are shown as a dash.
const UNKNOWN: &str = "-";

fn share(share: f64) -> String {
    if share.is_nan() { UNKNOWN.to_owned() } else { format!("{share:.3}") }
}

fn millis(seconds: f64, decimals: usize) -> String {
    if seconds.is_nan() { UNKNOWN.to_owned() } else { format!("{:.decimals$}ms", seconds * 1e3) }
}

/// Replay, then report.
pub fn run(args: Args) -> Result<(), ReplayError> {
    verify(&args)?;
    let mut trace = traces(&args.trace)?.cap_prompt(Tokens(args.prompt_max));
    trace = trace.scale_output(args.output_scale);
    if let Some(seconds) = args.seconds {
        trace = trace.window(Seconds::ZERO, Seconds(seconds));
    }
    trace.check(args.rate)?;
    let trace = trace.at_rate(args.rate);
    let slo = Slo {
        ttft: Seconds(args.slo_ttft),
        tpot: Seconds(args.slo_tpot),
        itl: args.slo_itl.map(Seconds),
    };
    let config = LoadConfig {
        target: target(&args)?,
        model: args.model.clone(),
        trace,
        drain: Seconds(args.drain),
    };
    let total = config.trace.arrivals.len() as u64;
    let sent = args.report.is_some().then(|| config.trace.clone());
    let progress = Arc::new(LoadProgress::default());
    let seen = Arc::clone(&progress);
    let outcomes = tokio::runtime::Runtime::new()?.block_on(async {
        let watching = tokio::spawn(watch(Arc::clone(&progress), total));
        let outcomes = load(config, progress).await;
        watching.abort();
        outcomes
    });
    let report = Report::of("live", args.rate, 0, &outcomes, &slo)
        .with_gaps(&seen.gaps())
        .with_errors(&outcomes);
    if !is_stdout(args.json.as_deref()) {
        print_table(std::slice::from_ref(&report));
    }
    for (failure, count) in seen.failures() {
        eprintln!("{count} failed: {failure}");
    }
    if seen.late_max() > LATE {
        eprintln!(
            "a request was sent {} late: this machine cannot generate the load in time",
            seen.late_max()
        );
    }
    if let (Some(path), Some(trace)) = (&args.report, &sent) {
        let page = live_page(&file_names(&args.trace), &slo, trace, &report, &outcomes);
        std::fs::write(path, page)
            .map_err(|source| ReplayError::File { path: path.clone(), source })?;
    }
    match &args.json {
        Some(path) => write_json(path, &[report]),
        None => Ok(()),
    }
}

/// Checks the numbers of the command line.
fn verify(args: &Args) -> Result<(), ReplayError> {
    let wrong = |problem: String| Err(ReplayError::Arguments(problem));
    for (name, value) in [
        ("--rate", Some(args.rate)),
        ("--output-scale", Some(args.output_scale)),
        ("--seconds", args.seconds),
        ("--slo-ttft", Some(args.slo_ttft)),
        ("--slo-tpot", Some(args.slo_tpot)),
        ("--slo-itl", args.slo_itl),
    ] {
        if value.is_some_and(|value| !(value.is_finite() && value > 0.0)) {
            return wrong(format!("{name} must be above 0"));
        }
    }
    match (0.0..=DRAIN_MAX).contains(&args.drain) {
        true => Ok(()),
        false => wrong(format!("--drain must be 0 to {DRAIN_MAX} seconds")),
    }
}

fn target(args: &Args) -> Result<Target, ReplayError> {
    let mut target = Target::parse(&args.target)?;
    if args.completions {
        target = target.completions();
    }
    let Some(path) = &args.api_key_file else { return Ok(target) };
    let key = std::fs::read_to_string(path)
        .map_err(|source| ReplayError::File { path: path.clone(), source })?;
    Ok(target.with_key(key.trim())?)
}

async fn watch(progress: Arc<LoadProgress>, total: u64) {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} ended, {msg}") {
        bar.set_style(style);
    }
    loop {
        let now = progress.snapshot();
        bar.set_position(now.done + now.failed);
        bar.set_message(format!("{} sent, {} failed, {} tokens", now.sent, now.failed, now.tokens));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_value_is_shown_as_a_dash() {
        assert_eq!((millis(f64::NAN, 0), share(f64::NAN)), ("-".to_owned(), "-".to_owned()));
        assert_eq!((millis(0.0125, 1), share(0.5)), ("12.5ms".to_owned(), "0.500".to_owned()));
    }
}
