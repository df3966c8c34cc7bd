//! Live and simulated runs agree: `tidegate demo` over real sockets in real time, compared with
//! `tidegate simulate` on the same slice of a trace. Two minutes of real time on a quiet machine:
//! `make test-live`, not part of `make test`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails loudly, prints what it saw, and reads traces"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use tidegate_sim::Trace;
use tidegate_types::{Seconds, Tokens};

/// Real time of a slice.
const LENGTH: f64 = 30.0;
/// Largest accepted difference of attainments.
const DIFFERENCE_MAX: f64 = 0.03;
/// Attempts per slice: on a busy machine the engines' steps end late.
const TRIES: u32 = 2;

#[test]
#[ignore = "two minutes of real time: make test-live"]
fn a_shift_of_regime() {
    // Long answers are followed by long prompts in the middle; answers are short enough to end within the demo.
    agree("regime_shift_60s.jsonl", 100.0, 1.4, 0.4);
}

#[test]
#[ignore = "two minutes of real time: make test-live"]
fn a_burst_of_azure_code() {
    agree("azure_llm_2023_code.first30min.csv", 840.0, 1.5, 1.0);
}

fn agree(file: &str, from: f64, rate: f64, output: f64) {
    let directory = tempfile::tempdir().unwrap();
    let slice = slice(file, from, rate, output, directory.path());
    let simulated = attainment(
        Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["simulate", "--policy", "tidegate", "--json", "--trace"])
            .arg(&slice),
        None,
    );
    let mut live = Vec::new();
    for _ in 0..TRIES {
        let report = directory.path().join("live.json");
        live.push(attainment(
            Command::new(env!("CARGO_BIN_EXE_tidegate"))
                .args(["demo", "--seconds", &LENGTH.to_string(), "--json"])
                .arg(&report)
                .arg("--trace")
                .arg(&slice),
            Some(&report),
        ));
        println!("{file}: simulated {simulated:.3}, live {live:.3?}");
        if (live[live.len() - 1] - simulated).abs() <= DIFFERENCE_MAX {
            return;
        }
    }
    panic!("{file}: simulated {simulated:.3}, live {live:.3?}");
}

/// Returns the attainment in tidegate's line of the report in `file`, or on standard output.
fn attainment(command: &mut Command, file: Option<&Path>) -> f64 {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = match file {
        Some(file) => std::fs::read_to_string(file).unwrap(),
        None => String::from_utf8(output.stdout).unwrap(),
    };
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let line = lines.into_iter().find(|line| line["policy"] == "tidegate").unwrap();
    line["attainment"].as_f64().unwrap()
}

/// Writes the first [`LENGTH`] of the trace at `rate` to a file.
fn slice(file: &str, from: f64, rate: f64, output: f64, directory: &Path) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/traces").join(file);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let trace = Trace::parse(&text)
        .unwrap()
        .cap_prompt(Tokens(32_000))
        .window(Seconds(from), Seconds(LENGTH * rate))
        .at_rate(rate)
        .scale_output(output);
    let lines: String = trace
        .arrivals
        .iter()
        .map(|arrival| {
            let (millis, prompt) = ((arrival.at.get() * 1e3) as u64, arrival.prompt.get());
            let output = arrival.output.get();
            format!(
                "{{\"timestamp\":{millis},\"input_length\":{prompt},\"output_length\":{output}}}\n"
            )
        })
        .collect();
    let path = directory.join("slice.jsonl");
    std::fs::write(&path, lines).unwrap();
    path
}
