//! `tidegate init URL…`: writes the configuration that `serve URL…` infers.

use std::io::Write;
use std::path::PathBuf;
use tidegate_settings::Settings;

use crate::discover::{Discovery, ListenArgs};

/// Write a configuration inferred from the reports of running engines.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    engines: Discovery,
    #[command(flatten)]
    addresses: ListenArgs,
    /// File to write; without it the configuration goes to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the file if it exists
    #[arg(long, requires = "output")]
    force: bool,
    /// Print the engines' reports as JSON instead of the configuration
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

/// Queries the engines, then writes the file.
pub fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    if args.engines.urls.is_empty() {
        return Err("init needs the URL of an engine: tidegate init http://host:8000".into());
    }
    if let Some(path) = args.output.as_ref().filter(|path| path.exists() && !args.force) {
        return Err(format!("{} exists: --force overwrites it", path.display()).into());
    }
    let draft = args.engines.draft(&args.addresses)?;
    let text = draft.to_toml();
    parsed(&text)?;
    if args.json {
        // A closed stdout (EPIPE) is ignored.
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&draft)?).ok();
        return Ok(());
    }
    match &args.output {
        Some(path) => {
            std::fs::write(path, text)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            eprintln!("wrote {0}; next: tidegate serve --config {0}", path.display());
        }
        // A closed stdout (EPIPE) is ignored.
        None => drop(std::io::stdout().write_all(text.as_bytes())),
    }
    Ok(())
}

/// Parses an inferred configuration.
///
/// # Errors
/// All errors, one per line, for example two engines with one URL.
pub fn parsed(text: &str) -> Result<Settings, String> {
    Settings::parse(text).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        format!("the engines cannot be used together:\n{}", lines.join("\n"))
    })
}
