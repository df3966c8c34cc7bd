//! `make evaluate`: judges policies on many draws of many loads, with 95 % confidence intervals and
//! paired differences, and writes the tables of docs/evaluation.md.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example reads traces and a clock, starts threads, and prints"
)]

mod ablation;
mod arguments;
mod cells;
mod classes;
mod contest;
mod document;
mod headline;
mod parallel;
mod saved;
mod standings;

use std::process::ExitCode;
use std::time::Instant;

use arguments::{Args, EvaluationSection, USAGE};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match Args::parse(&arguments).and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("evaluate: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let version = document::version();
    for section in &args.sections {
        let began = Instant::now();
        let (tables, seeds) = match section {
            EvaluationSection::Cells => (standings::run(args)?, args.seeds),
            EvaluationSection::Ablation => (ablation::run(args)?, args.fewer_seeds()),
            EvaluationSection::Disturbances => (ablation::disturbances(args)?, args.fewer_seeds()),
            EvaluationSection::Headline => (headline::run(args)?, headline::seeds(args)),
            EvaluationSection::Classes => (classes::run(args)?, args.seeds),
        };
        let stamp = document::stamp(&version, &args.command, seeds, began.elapsed().as_secs_f64());
        let text = format!("{stamp}{tables}");
        println!("## {}\n\n{text}", section.as_str());
        if args.writes() {
            document::write(*section, &text)?;
        }
    }
    Ok(())
}
