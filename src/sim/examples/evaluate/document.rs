//! The generated parts of docs/evaluation.md: text between `<!-- evaluate SECTION: generated -->` and
//! `<!-- evaluate SECTION: end -->` is replaced, everything else stays.

use std::process::Command;

use crate::arguments::EvaluationSection;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/evaluation.md");

/// Replaces the generated text of a section.
pub fn write(section: EvaluationSection, generated: &str) -> Result<(), String> {
    let problem = |error: std::io::Error| format!("{PAGE}: {error}");
    let page = std::fs::read_to_string(PAGE).map_err(problem)?;
    let name = section.as_str();
    let begin = format!("<!-- evaluate {name}: generated -->\n");
    let end = format!("<!-- evaluate {name}: end -->");
    let missing = || format!("{PAGE}: the markers of the section {name} are missing");
    let (before, rest) = page.split_once(&begin).ok_or_else(missing)?;
    let (_, after) = rest.split_once(&end).ok_or_else(missing)?;
    let page = format!("{before}{begin}\n{}\n\n{end}{after}", generated.trim());
    std::fs::write(PAGE, page).map_err(problem)
}

/// Returns the commit of the working tree and the date. Read before the runs: another commit may be
/// checked out while they last.
pub fn version() -> String {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Some(said).filter(|said| !said.is_empty())
    };
    let unknown = || "unknown".to_owned();
    let commit = said("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_else(unknown);
    let changed = said("git", &["status", "--porcelain", "--", "src"]);
    let changed = changed.map_or("", |_| " with uncommitted changes");
    let date = said("date", &["-u", "+%F"]).unwrap_or_else(unknown);
    format!("Commit {commit}{changed}, {date}")
}

/// Returns the line that says how a section was made.
pub fn stamp(version: &str, command: &str, seeds: u64, seconds: f64) -> String {
    let command = format!("make evaluate ARGS=\"{command}\"").replace(" ARGS=\"\"", "");
    format!("{version}, `{command}`, {seeds} draws, {seconds:.0} s.\n\n")
}
