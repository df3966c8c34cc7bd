//! `tidegate top` and `tidegate demo` without a terminal: lines for scripts.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use crate::fleet::Emulated;
use crate::process::{Serve, tidegate};
use crate::proxy::{DECODE, FREE, PREFILL, Proxy, SPLIT, vllm};

#[tokio::test(flavor = "multi_thread")]
async fn top_writes_a_line_per_reading_without_a_terminal() {
    let engines = Emulated::start(2).await;
    let fleet = [vllm("p", engines.url(0), PREFILL), vllm("d", engines.url(1), DECODE)];
    let proxy = Proxy::start(SPLIT, &fleet).await;
    let admin = proxy.admin.to_string();
    let top = |args: &[&str]| {
        let output = tidegate().args(["top", "--admin", &admin]).args(args).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text)
    };
    let top = |args: &[&str]| tokio::task::block_in_place(|| top(args));
    let (code, text) = top(&["--count", "2", "--interval", "0.1"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
    for word in [&*admin, "ready", "prefill 1 engines", "decode 1", "queue 0", "TTFT"] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
    assert!(!text.contains('\x1b'), "no escape sequences without a terminal");
    let (code, text) = top(&["--json", "--count", "2", "--interval", "0.1"]);
    assert_eq!(code, Some(0), "{text}");
    let readings: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(readings.len(), 2, "one JSON object per reading: {text}");
    assert!(readings[1]["at"].as_f64() > readings[0]["at"].as_f64(), "{text}");
    assert_eq!(readings[1]["fleet"]["backends"][0]["role"], "prefill");
    assert!(readings[1]["targets"]["ttft_seconds"].is_number(), "{text}");
    assert!(readings[1]["flips"].is_array(), "{text}");
    drop(proxy);
    let (code, text) = top(&["--count", "1"]);
    assert!(code == Some(1) && text.contains("cannot reach"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_top_after_a_whole_line() {
    let engines = Emulated::start(1).await;
    let proxy = Proxy::start("", &[vllm("a", engines.url(0), FREE)]).await;
    let mut command = tidegate();
    command.args(["top", "--json", "--interval", "600", "--admin", &proxy.admin.to_string()]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    tokio::task::block_in_place(|| lines.read_line(&mut first).unwrap());
    let reading: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!(reading["fleet"]["backends"].as_array().unwrap().len(), 1);
    let top = Serve::of(child);
    top.signal("-INT");
    let mut top = top;
    assert_eq!(top.exit_code().await, Some(0), "the interval is 10 minutes");
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn the_demo_prints_its_result_as_text() {
    let mut trace = tempfile::NamedTempFile::new().unwrap();
    for at in [0, 200, 400] {
        writeln!(trace, "{{\"timestamp\":{at},\"input_length\":600,\"output_length\":8}}").unwrap();
    }
    let json = tempfile::NamedTempFile::new().unwrap();
    let output = tidegate()
        .args(["demo", "--seconds", "4", "--trace"])
        .arg(trace.path())
        .arg("--json")
        .arg(json.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for word in ["tidegate  ", "static:", "Served in time with tidegate: ", "of 3 requests"] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
    let reports = std::fs::read_to_string(json.path()).unwrap();
    let policies: Vec<serde_json::Value> =
        reports.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(policies.len(), 2);
    assert_eq!(policies[0]["policy"], "tidegate");
}
