//! `tidegate check`: prints each configuration error on its own line. It opens no listener and
//! contacts no engine; it reports the errors at which `tidegate serve` would refuse to start.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::serve;

/// Check a configuration and every file it refers to: keys, certificates, tokenizers. Run it
/// on the proxy's host, as the user that runs the proxy.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Returns exit code 0 if the configuration is valid on this host, else 1.
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
