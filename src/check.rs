//! `tidegate check`: every mistake of a configuration on a line of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use tidegate_settings::Settings;

/// Check a configuration.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// 0 if the file can be used, 1 if not.
pub fn run(args: &Args) -> ExitCode {
    let path = args.config.display();
    let text = match std::fs::read_to_string(&args.config) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("cannot read {path}: {error}");
            return ExitCode::FAILURE;
        }
    };
    match Settings::parse(&text) {
        Ok(settings) => {
            let (backends, models) = (settings.backends.len(), settings.models.len());
            eprintln!("{path} is fine: {backends} backends, {models} models described");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            for problem in problems {
                eprintln!("{problem}");
            }
            ExitCode::FAILURE
        }
    }
}
