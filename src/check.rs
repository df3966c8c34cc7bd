//! `tidegate check`: every mistake of a configuration on a line of its own. It starts nothing and
//! asks no engine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tidegate_settings::Settings;

/// Check a configuration.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// 0 if the file can be used, 1 if not. Files that it names and this machine lacks are told and
/// are no mistake: configurations are checked elsewhere than they are used.
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
            for (key, file) in settings.files() {
                note_unreadable(&key, file);
            }
            let (backends, models) = (settings.backends.len(), settings.models.len());
            eprintln!("{path} is fine: backends {backends}, models described {models}");
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

fn note_unreadable(key: &str, file: &Path) {
    if let Err(error) = std::fs::File::open(file) {
        eprintln!("note: {key}: cannot read {} here: {error}", file.display());
    }
}
