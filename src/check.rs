//! `tidegate check`: every mistake of a configuration on a line of its own. It starts nothing and
//! asks no engine; what it finds is what `tidegate serve` would not start with.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::serve;

/// Check a configuration, and every file that it names: keys, certificates, tokenizers. Run it
/// where the proxy runs, as the user that it runs as.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// 0 if the file can be used here, 1 if not.
pub fn run(args: &Args) -> ExitCode {
    let settings = match serve::read(&args.config) {
        Ok(settings) => settings,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::FAILURE;
        }
    };
    // Warnings: a certificate that has expired.
    let _log = tidegate_proxy::log::init(&settings.log);
    if let Err(errors) = tidegate_proxy::files::load(&settings) {
        eprintln!("{errors}");
        return ExitCode::FAILURE;
    }
    let (backends, models) = (settings.backends.len(), settings.models.len());
    let path = args.config.display();
    eprintln!("{path} is fine: backends {backends}, models described {models}");
    ExitCode::SUCCESS
}
