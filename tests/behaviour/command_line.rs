//! Shell completions and manual pages name every command, and the reference page describes it.

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
