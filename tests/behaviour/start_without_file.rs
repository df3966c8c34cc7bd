//! `tidegate serve URL…`, `init` and `doctor`: configurations inferred from running engines.

use serde_json::Value;
use std::process::{Command, Stdio};
use tidegate_emulator::{EmulatedEngine, EmulatorConfig, SglangMode, VllmConnector};

use crate::client::{post, send};
use crate::fleet::Emulated;
use crate::process::{Serve, ran, tidegate, until_models_are_served};
use crate::proxy::{RefusingAddress, two_ports};

#[tokio::test(flavor = "multi_thread")]
async fn two_urls_suffice_for_disaggregation() {
    let engines = Emulated::start(2).await;
    let (data, admin) = two_ports();
    let mut command: Command = tidegate();
    command.args(["serve", &engines.url(0), &engines.url(1)]);
    command.args(["--listen", &data.to_string(), "--admin", &admin.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut serve = Serve::of(command.spawn().unwrap());
    until_models_are_served(data, admin).await;
    let fleet = send(admin, crate::client::get("/v1/fleet")).await.json();
    assert_eq!(fleet["backends"][1]["engine"], "vllm");
    assert_eq!(fleet["backends"][1]["version"], "0.32.0");
    let answer = send(data, post("/v1/chat/completions", engines.chat(false, 3000, 4))).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let moved = engines.stats(0).transfers_in + engines.stats(1).transfers_in;
    assert_eq!(moved, 1, "the engines' connector was found");
    serve.signal("-TERM");
    assert_eq!(serve.exit_code().await, Some(0));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut serve.child.stderr.take().unwrap(), &mut text).unwrap();
    for word in ["| connector = \"nixl\"", "estimated from bytes", "dashboard"] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn init_writes_what_check_accepts_for_every_kind_of_engine() {
    let sglang = |mode| EmulatorConfig { kind: EmulatedEngine::Sglang(mode), ..Default::default() };
    let mooncake = EmulatorConfig { connector: VllmConnector::Mooncake, ..Default::default() };
    let kinds = [
        (EmulatorConfig::default(), "connector = \"nixl\""),
        (mooncake, "connector = \"mooncake\""),
        (EmulatorConfig { kind: EmulatedEngine::Trtllm, ..Default::default() }, "\"transceiver\""),
        (sglang(SglangMode::Null), "No KV connector reported"),
        (EmulatorConfig { kind: EmulatedEngine::Plain, ..Default::default() }, "engine = \"vllm\""),
    ];
    for (config, word) in kinds {
        let engines = Emulated::with(config).await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tidegate.toml");
        let file = path.to_str().unwrap();
        let (code, _, stderr) = ran(&["init", &engines.url(0), "-o", file]);
        assert_eq!(code, Some(0), "{stderr}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(word) && text.contains("m (131072 tokens)"), "{word} in\n{text}");
        let (code, _, stderr) = ran(&["check", "--config", file]);
        assert_eq!(code, Some(0), "{stderr}\n{text}");
        let (code, _, stderr) = ran(&["init", &engines.url(0), "-o", file]);
        assert!(code == Some(1) && stderr.contains("--force"), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sglang_engines_get_the_roles_of_their_modes() {
    let of = async |mode| Emulated::of(1, EmulatedEngine::Sglang(mode)).await;
    let prefill = of(SglangMode::Prefill).await;
    let decode = of(SglangMode::Decode).await;
    let (code, text, stderr) = ran(&["init", "--json", &prefill.url(0), &decode.url(0)]);
    assert_eq!(code, Some(0), "{stderr}");
    let draft: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&draft["backends"][0]["role"], &draft["backends"][1]["engine"]),
        (&"prefill".into(), &"sglang".into())
    );
    let (code, text, stderr) = ran(&["init", &prefill.url(0), &decode.url(0)]);
    assert_eq!(code, Some(0), "{stderr}");
    let port = format!("bootstrap_port = {}", prefill.address(0).port());
    for word in ["role = \"prefill\"", "role = \"decode\"", "\"bootstrap\"", &port] {
        assert!(text.contains(word), "{word} in\n{text}");
    }
    let (code, _, stderr) = ran(&["init", &decode.url(0)]);
    assert!(
        code == Some(1) && stderr.contains("role"),
        "a decode engine alone cannot serve: {stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_engines_are_reported() {
    let engines = Emulated::start(1).await;
    let refusing = RefusingAddress::new();
    let (code, text, _) = ran(&["init", &engines.url(0), &refusing.url(), "--wait", "0"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("NOT UP") && text.matches("connector = \"nixl\"").count() == 2, "{text}");
    let (code, _, stderr) = ran(&["serve", &refusing.url(), "--wait", "0"]);
    assert!(code == Some(1) && stderr.contains("no engine answered"), "{stderr}");
    let (code, _, stderr) = ran(&["init", &engines.url(0), "--tokenizer", "/no/such/file"]);
    assert!(code == Some(1) && stderr.contains("/no/such/file"), "{stderr}");
    let (code, _, stderr) = ran(&["serve"]);
    assert!(code == Some(2) && stderr.contains("--config"), "{stderr}");
}

fn findings<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    let all = report["findings"].as_array().unwrap();
    all.iter().filter(|finding| finding["check"] == check).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_runs_a_trial_hand_off_between_each_pair() {
    for (connector, moves) in [(VllmConnector::Nixl, true), (VllmConnector::Mooncake, false)] {
        let engines =
            Emulated::with(EmulatorConfig { count: 2, connector, ..Default::default() }).await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tidegate.toml");
        let name = if moves { "nixl" } else { "mooncake" };
        let backend = |i: usize| {
            format!(
                "[[backends]]\nname = \"e{i}\"\nurl = \"{}\"\nengine = \"vllm\"\nconnector = \"{name}\"\n\
                 bootstrap_port = {}\n",
                engines.url(i),
                engines.address(i).port()
            )
        };
        std::fs::write(&path, backend(0) + &backend(1)).unwrap();
        let (code, text, stderr) = ran(&["doctor", "--config", path.to_str().unwrap(), "--json"]);
        assert_eq!(code, Some(0), "{text}{stderr}");
        let report: Value = serde_json::from_str(&text).unwrap();
        let trials = findings(&report, "hand-off");
        assert_eq!(trials.len(), 2, "{text}");
        assert!(trials.iter().all(|trial| trial["level"] == "ok"), "{text}");
        assert_eq!(engines.stats(0).transfers_in + engines.stats(1).transfers_in, 2);
        assert!(findings(&report, "engine").iter().all(|each| each["level"] == "ok"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_reports_problems_with_advice() {
    let engines = Emulated::of(1, EmulatedEngine::Plain).await;
    let refusing = RefusingAddress::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tidegate.toml");
    let tokenizer = concat!(env!("CARGO_MANIFEST_DIR"), "/filters/testdata/tiny_llama.json");
    let text = format!(
        "[[models]]\nname = \"m\"\ntokenizer = \"{tokenizer}\"\n\
         [[backends]]\nname = \"a\"\nurl = \"{}\"\nengine = \"vllm\"\nconnector = \"nixl\"\n\
         [[backends]]\nname = \"gone\"\nurl = \"{}\"\nengine = \"vllm\"\nconnector = \"nixl\"\n",
        engines.url(0),
        refusing.url()
    );
    std::fs::write(&path, text).unwrap();
    let (code, text, _) = ran(&["doctor", "--config", path.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    let line = |subject: &str, check: &str| {
        let found = text.lines().find(|line| line.contains(subject) && line.contains(check));
        found.unwrap_or_else(|| panic!("{subject} {check} in\n{text}"))
    };
    assert!(line("gone", "reach").starts_with("error"));
    assert!(line("a ", "connector").starts_with("error"));
    assert!(line("a ", "tokenizer").starts_with("error"), "the emulator has another tokenizer");
    assert!(text.contains("→ "), "findings have advice");
    assert!(!text.contains('\x1b'), "no colours without a terminal");
}
