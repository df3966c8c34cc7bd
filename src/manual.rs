//! `tidegate completions` and `tidegate man`: generated from the command line's own definition.

use clap_complete::Shell;
use std::io;
use std::path::{Path, PathBuf};

/// Print a shell's completions.
///
/// bash: tidegate completions bash > /usr/share/bash-completion/completions/tidegate
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Write the manual pages.
#[derive(clap::Args)]
pub struct ManArgs {
    /// Folder for one page a command; without it tidegate(1) goes to standard output
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Prints completions.
pub fn completions(args: &CompletionsArgs, mut command: clap::Command) -> io::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "tidegate", &mut text);
    printed(&text)
}

/// Writes the manual pages.
pub fn man(args: &ManArgs, command: clap::Command) -> io::Result<()> {
    let mut command = command;
    // Adds the inherited arguments to the subcommands.
    command.build();
    match &args.output {
        None => printed(&page(&command)?),
        Some(folder) => {
            std::fs::create_dir_all(folder)?;
            write(folder, "tidegate", &command)?;
            for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
                let name = format!("tidegate-{}", inner.get_name());
                write(folder, &name, inner)?;
            }
            Ok(())
        }
    }
}

fn write(folder: &Path, name: &str, command: &clap::Command) -> io::Result<()> {
    std::fs::write(folder.join(format!("{name}.1")), page(command)?)
}

fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    Ok(text)
}

/// A closed stdout (EPIPE) is no failure.
fn printed(text: &[u8]) -> io::Result<()> {
    match io::Write::write_all(&mut io::stdout(), text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
