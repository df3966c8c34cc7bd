//! `tidegate serve`: runs the proxy until a shutdown signal.

use std::error::Error;
use std::path::{Path, PathBuf};
use tidegate_proxy::{Addresses, Listeners};
use tidegate_settings::Settings;

/// Run the proxy.
///
/// SIGTERM: readiness fails at once, new requests are served for server.linger_seconds, then the
/// listeners close and requests in flight drain. SIGHUP: certificates are reloaded. SIGQUIT: the
/// listeners pass to a process started with --upgrade; without one the signal is ignored.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Take over the listeners of the running proxy (then send it SIGQUIT)
    #[arg(long)]
    upgrade: bool,
}

/// Runs the proxy and returns once it has drained.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let settings = read(&args.config)?;
    let _log = tidegate_proxy::log::init(&settings.log);
    let listeners = if args.upgrade { Listeners::Inherited } else { Listeners::Own };
    let simulator = Some(crate::what_if::simulator());
    let announce = |addresses: &Addresses| announce(&settings, addresses);
    tidegate_proxy::run(&settings, listeners, simulator, announce)?;
    Ok(())
}

/// Reads and validates the settings in a file.
///
/// # Errors
/// All errors, one per line.
pub fn read(path: &Path) -> Result<Settings, String> {
    let shown = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    Settings::parse(&text).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        format!("{shown} cannot be used:\n{}", lines.join("\n"))
    })
}

/// Tells where the proxy listens.
pub fn announce(settings: &Settings, addresses: &Addresses) {
    let scheme = |tls: bool| if tls { "https" } else { "http" };
    for address in &addresses.data {
        eprintln!("tidegate listens on {}://{address}", scheme(settings.server.tls.is_some()));
    }
    let admin = addresses.admin;
    eprintln!("dashboard and metrics on {}://{admin}/", scheme(settings.admin.tls.is_some()));
}
