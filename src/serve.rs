//! `tidegate serve`: run the proxy until it is told to stop.

use std::error::Error;
use std::path::PathBuf;
use tidegate_proxy::Listeners;
use tidegate_settings::Settings;

/// Run the proxy.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Take the listeners over from the proxy that runs (then send it SIGQUIT)
    #[arg(long)]
    upgrade: bool,
}

/// Returns when the proxy has drained.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let path = args.config.display();
    let text = std::fs::read_to_string(&args.config)
        .map_err(|error| format!("cannot read {path}: {error}"))?;
    let settings = Settings::parse(&text).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        format!("{path} cannot be used:\n{}", lines.join("\n"))
    })?;
    let _log = tidegate_proxy::log::init(&settings.log);
    let listeners = if args.upgrade { Listeners::Inherited } else { Listeners::Own };
    tidegate_proxy::run(&settings, listeners)?;
    Ok(())
}
