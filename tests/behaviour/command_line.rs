//! Shell completions and manual pages name every command, and the reference page describes it.

use std::io::Write;

use crate::process::tidegate;

fn stdout(args: &[&str]) -> String {
    let output = tidegate().args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that `--help` lists.
fn commands() -> Vec<String> {
    let help = stdout(&["--help"]);
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let first = listed.lines().filter_map(|line| line.split_whitespace().next());
    first.filter(|word| *word != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_has_completions_a_manual_page_and_a_description() {
    let commands = commands();
    assert!(commands.len() > 10 && commands.contains(&"serve".to_owned()), "{commands:?}");
    let folder = tempfile::tempdir().unwrap();
    stdout(&["man", "--output", folder.path().to_str().unwrap()]);
    let reference = include_str!("../../docs/reference/command-line.md");
    for shell in ["bash", "zsh", "fish"] {
        let completions = stdout(&["completions", shell]);
        for command in &commands {
            assert!(completions.contains(command.as_str()), "{command} in {shell}'s");
        }
    }
    for command in &commands {
        let page = folder.path().join(format!("tidegate-{command}.1"));
        let page = std::fs::read_to_string(page).unwrap();
        assert!(page.contains(".SH SYNOPSIS") && page.contains("tidegate"), "{page}");
        assert!(reference.contains(&format!("`tidegate {command}")), "{command} is not described");
    }
    assert!(stdout(&["man"]).contains(".TH tidegate 1"), "tidegate(1) on stdout");
}

#[test]
fn what_is_printed_for_people_is_printed_as_json_too() {
    let emulated = stdout(&["emulate", "--listen", "127.0.0.1:0", "--seconds", "0.1", "--json"]);
    let emulated: serde_json::Value = serde_json::from_str(&emulated).unwrap();
    assert!(
        emulated["engines"][0].as_str().unwrap().starts_with("http://127.0.0.1:"),
        "{emulated}"
    );

    let mut trace = tempfile::NamedTempFile::new().unwrap();
    for at in 0..40 {
        let at = at * 100;
        writeln!(trace, "{{\"timestamp\":{at},\"input_length\":900,\"output_length\":8}}").unwrap();
    }
    let trace = trace.path().to_str().unwrap();
    let base = ["simulate", "--trace", trace, "--policy", "aggregated", "--engines", "2", "--json"];
    let sizes = |size: &str| {
        let text = stdout(&[&base[..], &["--size", size, "--slo-ttft", "60"]].concat());
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let reached = sizes("0.5");
    assert_eq!((&reached["engines"], &reached["policy"]), (&1.into(), &"aggregated".into()));
    assert!(reached["attainment"].as_f64().unwrap() >= 0.5, "{reached}");
    // Without a TTFT in time no fleet suffices.
    let text = stdout(&[&base[..], &["--size", "0.5", "--slo-ttft", "0.000001"]].concat());
    let missed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(missed["engines"].is_null() && missed["attainment"].is_null(), "{missed}");
}

/// Commands that print no result of their own: servers, and text that is read by programs.
const WITHOUT_JSON: [&str; 4] = ["serve", "sidecar", "completions", "man"];

#[test]
fn every_command_with_a_result_has_json() {
    for command in commands() {
        let mut help = stdout(&[&command, "--help"]);
        if command == "backends" {
            help = stdout(&["backends", "list", "--help"]);
        }
        let expected = !WITHOUT_JSON.contains(&command.as_str());
        assert_eq!(help.contains("--json"), expected, "{command}");
    }
}

#[test]
fn the_compose_file_uses_options_that_exist() {
    let compose = include_str!("../../deploy/compose/compose.yaml");
    let mut words = compose.split([' ', ',', '[', ']', '\n', '"', '=']).filter(|w| !w.is_empty());
    let (mut command, mut seen) = (String::new(), 0);
    let commands = commands();
    while let Some(word) = words.next() {
        if word == "command:" {
            command = words.find(|word| commands.iter().any(|known| known == word)).unwrap().into();
        } else if word.starts_with("--") && !command.is_empty() {
            assert!(stdout(&[&command, "--help"]).contains(word), "{command} {word}");
            seen += 1;
        }
    }
    assert!(seen > 8, "{seen} options were found");
}
