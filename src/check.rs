//! `tidegate check`: prints each configuration error on its own line. It opens no listener and
//! contacts no engine; it reports the errors at which `tidegate serve` would refuse to start.

use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use tidegate_settings::{Problem, Settings};

use crate::serve;

/// Check a configuration and every file it refers to: keys, certificates, tokenizers. Run it
/// on the proxy's host, as the user that runs the proxy.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print the errors as JSON
    #[arg(long)]
    json: bool,
}

/// Returns exit code 0 if the configuration is valid on this host, else 1.
pub fn run(args: &Args) -> ExitCode {
    if args.json {
        let problems = problems(args);
        let answer = json!({ "ok": problems.is_empty(), "errors": problems });
        // A closed stdout (EPIPE) is ignored.
        writeln!(std::io::stdout(), "{answer:#}").ok();
        return if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let settings = match serve::read(&args.config) {
        Ok(settings) => settings,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::FAILURE;
        }
    };
    // Loading may log warnings, for example about an expired certificate.
    let _log = tidegate_proxy::log::init(&settings.log);
    if let Err(errors) = tidegate_proxy::files::load(&settings) {
        eprintln!("{errors}");
        return ExitCode::FAILURE;
    }
    let (backends, models) = (settings.backends.len(), settings.models.len());
    let path = args.config.display();
    eprintln!("{path} is valid: {backends} backends, {models} [[models]] tables");
    ExitCode::SUCCESS
}

/// Returns all errors with key, hint and, if known, line.
fn problems(args: &Args) -> Vec<Value> {
    let text = match std::fs::read_to_string(&args.config) {
        Ok(text) => text,
        Err(error) => return vec![json!({ "problem": format!("cannot read the file: {error}") })],
    };
    match Settings::parse(&text) {
        Err(problems) => problems.iter().map(of_setting).collect(),
        Ok(settings) => match tidegate_proxy::files::load(&settings) {
            Ok(_) => Vec::new(),
            Err(errors) => errors
                .0
                .iter()
                .map(|error| json!({ "path": error.key, "problem": error.problem.to_string() }))
                .collect(),
        },
    }
}

fn of_setting(problem: &Problem) -> Value {
    json!({
        "path": problem.path,
        "line": problem.line,
        "problem": problem.problem,
        "hint": problem.hint,
    })
}
