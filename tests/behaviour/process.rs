//! The program itself: `serve` with signals, `check`, and the operator's commands.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::client::{get, open, post, send, until};
use crate::fake::{Act, Fake, chat_chunks};
use crate::proxy::{FREE, chat, config, plain, two_ports, vllm};

pub struct Serve {
    pub child: Child,
    _directory: Option<tempfile::TempDir>,
}

impl Drop for Serve {
    fn drop(&mut self) {
        // It has already ended if the test succeeded.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub fn tidegate() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tidegate"))
}

/// Runs a command and returns its exit code, stdout and stderr.
pub fn ran(args: &[&str]) -> (Option<i32>, String, String) {
    let output = tokio::task::block_in_place(|| tidegate().args(args).output().unwrap());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

pub fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tidegate.toml");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

pub fn serve(text: &str) -> Serve {
    serve_with(text, &[])
}

pub fn serve_with(text: &str, args: &[&str]) -> Serve {
    let (directory, path) = write(text);
    let mut command = tidegate();
    command.args(["serve", "--config"]).arg(path).args(args);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Serve { child: command.spawn().unwrap(), _directory: Some(directory) }
}

impl Serve {
    /// Wraps a process without a configuration file.
    pub fn of(child: Child) -> Serve {
        Serve { child, _directory: None }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    pub async fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        until("it exits", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.and_then(|status| status.code())
    }
}

/// Waits until the proxy listens on both ports and has probed its engine.
pub async fn until_models_are_served(data: SocketAddr, admin: SocketAddr) {
    until("it listens", || std::net::TcpStream::connect(data).is_ok()).await;
    until("it is up", || std::net::TcpStream::connect(admin).is_ok()).await;
    while !send(data, get("/v1/models")).await.body.contains("\"m\"") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_streams_finish_turns_unready_and_exits_0() {
    let mut chunks = chat_chunks(120);
    let end = chunks.split_off(3);
    let fake = Fake::start([], Act::Chunks([chunks, end].concat())).await;
    let (data, admin) = two_ports();
    let mut serve = serve(&config(data, admin, "", &[plain("a", &fake)]));
    until_models_are_served(data, admin).await;
    let mut stream = open(data, post("/v1/chat/completions", chat(true))).await.unwrap();
    let mut text = stream.chunk().await.unwrap().unwrap().to_vec();
    serve.signal("-TERM");
    loop {
        let ready = send(admin, get("/readyz")).await;
        if ready.status == 503 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    while let Some(chunk) = stream.chunk().await {
        text.extend_from_slice(&chunk.unwrap());
    }
    assert!(text.ends_with(b"data: [DONE]\n\n"), "the stream was cut");
    assert_eq!(serve.exit_code().await, Some(0));
}

/// Returns the output of a command for this configuration, and whether it succeeds.
fn output_of(command: &str, path: &std::path::Path) -> (bool, String) {
    let output = tidegate().args([command, "--config"]).arg(path).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn check_and_serve_agree_on_files() {
    let (directory, path) = write("");
    let at = |name: &str| directory.path().join(name);
    let file = |name: &str, text: &str| {
        std::fs::write(at(name), text).unwrap();
        at(name).display().to_string()
    };
    let missing = at("missing").display().to_string();
    let key = |file: &str| format!("[[auth.keys]]\nname = \"n\"\nkey_file = \"{file}\"\n");
    let model = |file: &str| format!("[[models]]\nname = \"m\"\ntokenizer = \"{file}\"\n");
    let state = |file: &str| format!("[admin]\nstate_file = \"{file}\"\n");
    let nowhere = at("no/such/directory/roles.json").display().to_string();
    for (top, setting, word) in [
        (key(&file("empty", "\n")), "auth.keys[0].key_file", "is empty"),
        (key(&file("bom", "\u{feff}\r\n")), "auth.keys[0].key_file", "is empty"),
        (key(&file("short", "only-15-bytes-x")), "auth.keys[0].key_file", "16 bytes"),
        (
            key(&file("two", "0123456789abcdef\r\nfedcba9876543210\r\n")),
            "auth.keys[0].key_file",
            "more than one line",
        ),
        (key(&missing), "auth.keys[0].key_file", "missing"),
        (model(&missing), "models[0].tokenizer", "missing"),
        (model(&file("broken.json", "{")), "models[0].tokenizer", "broken.json"),
        (state(&nowhere), "admin.state_file", "cannot write"),
        (state(&file("state.json", "{")), "admin.state_file", "state.json"),
    ] {
        let (data, admin) = two_ports();
        let engines = [vllm("a", "http://127.0.0.1:9".to_owned(), FREE)];
        std::fs::write(&path, config(data, admin, &top, &engines)).unwrap();
        let lines = ["check", "serve"].map(|command| {
            let (ok, text) = output_of(command, &path);
            assert!(!ok, "{command} accepts {top}");
            let found = text.lines().find(|line| line.starts_with(&format!("{setting}:")));
            found
                .unwrap_or_else(|| panic!("{command} does not report {setting}: {text}"))
                .to_owned()
        });
        assert_eq!(lines[0], lines[1]);
        assert!(lines[0].contains(word), "{word}: {}", lines[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_commands_control_a_running_proxy() {
    let (a, b) = (Fake::start([], Act::Silent).await, Fake::start([], Act::Silent).await);
    let engines = [vllm("a", a.url(), FREE), vllm("b", b.url(), FREE)];
    let (data, admin) = two_ports();
    let _serve = serve(&config(data, admin, "[planner]\nenabled = false\n", &engines));
    until("it is up", || std::net::TcpStream::connect(admin).is_ok()).await;
    let run = |args: &[&str]| {
        let to = ["--admin".to_owned(), admin.to_string()];
        let output = tidegate().args(args).args(to).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), text)
    };
    let run = |args: &[&str]| tokio::task::block_in_place(|| run(args));
    let (ok, text) = run(&["status"]);
    assert!(ok && text.contains("backend") && text.contains("http://"), "{text}");
    for args in [&["flip", "a", "mixed"][..], &["pin", "a", "decode"], &["unpin", "a"]] {
        let (ok, text) = run(args);
        assert!(ok, "{args:?}: {text}");
    }
    let (ok, text) = run(&["flip", "b", "decode", "--for", "2h"]);
    assert!(ok && text.contains("2.0 hours") && text.contains("unpin b"), "{text}");
    let (ok, text) = run(&["flip", "b", "decode"]);
    assert!(ok && text.contains("10 minutes"), "the answer states the duration: {text}");
    let (ok, text) = run(&["status", "--json"]);
    let fleet: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(ok && fleet["backends"][0]["role"] == "decode", "{text}");
    for args in [&["flip", "a", "prefill"][..], &["pin", "a", "decode"], &["unpin", "a"]] {
        let (ok, text) = run(&[args, &["--json"]].concat());
        let plan: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(ok && plan["roles"]["a"].is_string(), "{args:?}: {text}");
    }
    let (ok, text) = run(&["flip", "unknown", "decode"]);
    assert!(!ok && text.contains("unknown"), "{text}");
}

#[test]
fn check_prints_one_error_per_line() {
    let (_directory, path) = write(
        "[server]\nlisten = [\"nowhere\"]\nbody_max_bites = 1\n[[backends]]\nname = \"a\"\nurl = \"ftp://x\"\n",
    );
    let output = tidegate().args(["check", "--config"]).arg(&path).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let json = tidegate().args(["check", "--json", "--config"]).arg(&path).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json.status.code(), &report["ok"]), (Some(1), &false.into()));
    let misspelt =
        report["errors"].as_array().unwrap().iter().find(|e| e["path"] == "server.body_max_bites");
    assert_eq!(misspelt.unwrap()["line"], 3, "{report}");
    for path in ["server.listen", "server.body_max_bites", "backends[0].url"] {
        assert_eq!(text.lines().filter(|line| line.contains(path)).count(), 1, "{path} in\n{text}");
    }
}
