//! Backends join and leave while the proxy serves.

use crate::fleet::Emulated;
use crate::load::Load;
use crate::proxy::{FREE, Proxy, config, vllm};

fn entry(name: &str, url: &str) -> String {
    format!(
        r#"{{"name":"{name}","url":"{url}","engine":"vllm","connector":"nixl","kv_role":"kv_both"}}"#
    )
}

pub const FAST: &str = "[probe]\ninterval_seconds = 0.1\ntimeout_seconds = 15\nslow_return_seconds = 0.1\n\
                    [planner]\ndwell_seconds = 0.1\n";

#[tokio::test(flavor = "multi_thread")]
async fn backends_join_and_leave_under_load_without_a_failed_request() {
    let fleet = Emulated::start(4).await;
    let proxy =
        Proxy::start(FAST, &[vllm("e0", fleet.url(0), FREE), vllm("e1", fleet.url(1), FREE)]).await;
    let load = Load::start(&proxy, &fleet, 6);
    load.serves_more().await;
    for (name, engine) in [("e2", 2), ("e3", 3)] {
        let answer = proxy.add(&entry(name, &fleet.url(engine))).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.json()["joined"], 1);
        proxy.shows(name, |backend| backend["health"] == "up").await;
    }
    for name in ["e0", "e1"] {
        assert_eq!(proxy.remove(name).await.status, 200);
    }
    proxy.has(&["e2", "e3"]).await;
    load.serves_more().await;
    // An address that had left, under another name.
    assert_eq!(proxy.add(&entry("again", &fleet.url(0))).await.status, 200);
    proxy.shows("again", |backend| backend["health"] == "up").await;
    load.serves_more().await;
    load.end().await;
    proxy.settles().await;
    assert_eq!(proxy.names().await, ["again", "e2", "e3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_backend_is_a_new_one_and_slots_are_reused() {
    let fleet = Emulated::start(2).await;
    // A task of a backend that has left holds its slot until it wakes up.
    let top = format!("[signals]\nscrape_seconds = 0\n{FAST}");
    let proxy = Proxy::start(&top, &[vllm("e0", fleet.url(0), FREE)]).await;
    let load = Load::start(&proxy, &fleet, 3);
    for round in 0..6 {
        let answer = proxy.add(&entry("e0", &fleet.url((round + 1) % 2))).await;
        assert_eq!(answer.json()["replaced"], 1, "{}", answer.body);
        let url = fleet.url((round + 1) % 2);
        proxy
            .shows("e0", |b| {
                b["health"] == "up" && b["url"].as_str().unwrap().starts_with(url.as_str())
            })
            .await;
        proxy.has(&["e0"]).await;
        load.serves_more().await;
    }
    load.end().await;
    proxy.settles().await;
    assert!(proxy.slots() < 6, "{} slots", proxy.slots());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_backend_is_answered_with_every_problem() {
    let fleet = Emulated::start(1).await;
    let proxy = Proxy::start(FAST, &[vllm("e0", fleet.url(0), FREE)]).await;
    let answer = proxy.add(r#"{"name":"a b","url":"nowhere","streams":3}"#).await;
    assert_eq!(answer.status, 400);
    for word in ["name", "url", "streams"] {
        assert!(answer.body.contains(word), "{word}: {}", answer.body);
    }
    let answer = proxy.add(&entry("twin", &fleet.url(0))).await;
    assert_eq!(answer.status, 409);
    assert!(answer.body.contains("one entry an engine"), "{}", answer.body);
    assert_eq!(proxy.remove("unknown").await.status, 404);
    assert_eq!(proxy.names().await, ["e0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn added_and_removed_backends_are_kept_over_a_restart() {
    let fleet = Emulated::start(3).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.json");
    let top = format!("[admin]\nstate_file = \"{}\"\n{FAST}", file.display());
    let engines = || [vllm("e0", fleet.url(0), FREE), vllm("e1", fleet.url(1), FREE)];
    let proxy = Proxy::start(&top, &engines()).await;
    assert_eq!(proxy.add(&entry("e2", &fleet.url(2))).await.status, 200);
    assert_eq!(proxy.remove("e0").await.status, 200);
    proxy.has(&["e1", "e2"]).await;
    drop(proxy);
    let proxy = Proxy::start(&top, &engines()).await;
    assert_eq!(proxy.names().await, ["e1", "e2"]);
    let body = fleet.chat(true, 300, 5);
    assert_eq!(proxy.post("/v1/chat/completions", &body).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backends_of_the_file_are_reloaded_and_errors_keep_the_old_ones() {
    let fleet = Emulated::start(3).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.toml");
    let first = [vllm("e0", fleet.url(0), FREE), vllm("e1", fleet.url(1), FREE)];
    let proxy = Proxy::from_file(&file, FAST, &first).await;
    let load = Load::start(&proxy, &fleet, 4);
    load.serves_more().await;
    std::fs::write(&file, "[[backends]]\nname = \"e0\"\n").unwrap();
    proxy.reload();
    load.serves_more().await;
    assert_eq!(proxy.names().await, ["e0", "e1"]);
    let second = [vllm("e1", fleet.url(1), FREE), vllm("e2", fleet.url(2), FREE)];
    std::fs::write(&file, config(proxy.data, proxy.admin, FAST, &second)).unwrap();
    proxy.reload();
    proxy.has(&["e1", "e2"]).await;
    // Without a signal: a changed file is noticed.
    std::fs::write(&file, config(proxy.data, proxy.admin, FAST, &first)).unwrap();
    proxy.has(&["e0", "e1"]).await;
    load.serves_more().await;
    load.end().await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_are_listed_added_and_removed_on_the_command_line() {
    let fleet = Emulated::start(2).await;
    let proxy = Proxy::start(FAST, &[vllm("e0", fleet.url(0), FREE)]).await;
    let admin = proxy.admin.to_string();
    let backends = |args: &[&str]| {
        let mut command = crate::process::tidegate();
        let output = command.arg("backends").args(args).args(["--admin", &admin]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout) + &text(output.stderr))
    };
    let url = fleet.url(1);
    let entry = ["engine=vllm", "connector=nixl", "kv_role=kv_both", "streams_max=8"];
    let (ok, told) = backends(&[&["add", "e1", &url][..], &entry[..]].concat());
    assert!(ok && told.starts_with("e1 joins"), "{told}");
    proxy.shows("e1", |e1| e1["health"] == "up" && e1["streams_max"] == 8).await;
    let (ok, listed) = backends(&["list"]);
    let lines: Vec<&str> = listed.lines().collect();
    assert!(ok && lines[1].starts_with("e0 ") && lines[2].starts_with("e1 "), "{listed}");
    assert!(lines[2].contains("up") && lines[2].ends_with(&url), "{listed}");
    let (ok, told) = backends(&["add", "e1", &url, "streams=8"]);
    assert!(!ok && told.contains("streams"), "{told}");
    let (ok, told) = backends(&["remove", "e1", "--now", "--json"]);
    assert!(ok && told.contains("\"left\":1"), "{told}");
    proxy.has(&["e0"]).await;
    let (ok, told) = backends(&["remove", "e1"]);
    assert!(!ok && told.contains("no backend is named"), "{told}");
}
