//! `tidegate serve`: runs the proxy until a shutdown signal.

use std::error::Error;
use std::path::{Path, PathBuf};
use tidegate_proxy::{Addresses, Listeners};
use tidegate_settings::Settings;

use crate::discover::{self, Discovery};
use crate::init;

/// Run the proxy.
///
/// With URLs instead of a file the configuration is inferred from the engines' reports and printed;
/// `tidegate init` writes it to a file.
///
/// SIGTERM: readiness fails at once, new requests are served for server.linger_seconds, then the
/// listeners close and requests in flight drain. SIGHUP: certificates and the settings of the file
/// are reloaded, except those that need a new socket or thread. SIGQUIT: the
/// listeners pass to a process started with --upgrade; without one the signal is ignored.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    engines: Discovery,
    #[command(flatten)]
    at: discover::ListenArgs,
    /// The configuration file
    #[arg(long, value_name = "FILE", required_unless_present = "urls", conflicts_with = "urls")]
    config: Option<PathBuf>,
    /// Take over the listeners of the running proxy (then send it SIGQUIT)
    #[arg(long)]
    upgrade: bool,
}

/// Runs the proxy and returns once it has drained.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let settings = match &args.config {
        Some(path) => read(path)?,
        None => inferred(args)?,
    };
    let settings = placed(settings, &args.at);
    let _log = tidegate_proxy::log::init(&settings.log);
    let listeners = if args.upgrade { Listeners::Inherited } else { Listeners::Own };
    let simulator = Some(crate::what_if::simulator());
    let announce = |addresses: &Addresses| announce(&settings, addresses);
    tidegate_proxy::run(&settings, listeners, simulator, announce)?;
    Ok(())
}

/// Queries the engines and prints the inferred configuration.
fn inferred(args: &Args) -> Result<Settings, String> {
    let text = args.engines.draft(&args.at)?.to_toml();
    let settings = init::parsed(&text)?;
    for line in text.lines() {
        eprintln!("| {line}");
    }
    Ok(settings)
}

/// Returns the settings with the addresses of the command line.
fn placed(mut settings: Settings, at: &discover::ListenArgs) -> Settings {
    if !at.listen.is_empty() {
        settings.server.listen.clone_from(&at.listen);
        settings.on_command_line.push("server.listen");
    }
    if let Some(admin) = at.admin {
        settings.admin.listen = admin;
        settings.on_command_line.push("admin.listen");
    }
    settings
}

/// Reads and validates the settings in a file.
///
/// # Errors
/// All errors, one per line.
pub fn read(path: &Path) -> Result<Settings, String> {
    let shown = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let settings = Settings::parse(&text).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        format!("{shown} cannot be used:\n{}", lines.join("\n"))
    })?;
    Ok(Settings { file: Some(path.to_owned()), ..settings })
}

/// Prints the addresses on which the proxy listens.
pub fn announce(settings: &Settings, addresses: &Addresses) {
    let scheme = |tls: bool| if tls { "https" } else { "http" };
    for address in &addresses.data {
        eprintln!("tidegate listens on {}://{address}", scheme(settings.server.tls.is_some()));
    }
    let admin = addresses.admin;
    eprintln!("dashboard and metrics on {}://{admin}/", scheme(settings.admin.tls.is_some()));
}
