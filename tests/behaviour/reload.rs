//! Settings change while the proxy serves.

use http::Request;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use crate::client::{Answer, LIMIT, get, post, send, until};
use crate::discovery::FAST;
use crate::field::RawEngine;
use crate::fleet::Emulated;
use crate::load::{KEY, Load, bearer};
use crate::process;
use crate::proxy::{Engine, FREE, Proxy, config, two_ports, vllm};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test(flavor = "multi_thread")]
async fn sighup_changes_the_log_level_of_the_program() {
    let fleet = Emulated::start(1).await;
    let engines = [vllm("e0", fleet.url(0), FREE)];
    let (data, admin) = two_ports();
    let level =
        |level: &str| config(data, admin, &format!("[log]\nlevel = \"{level}\"\n"), &engines);
    let (directory, file) = process::write(&level("error"));
    let errors = directory.path().join("stderr");
    let mut command = process::tidegate();
    command.args(["serve", "--config"]).arg(&file).stdout(Stdio::null());
    let to = std::fs::File::create(&errors).unwrap();
    let serve = process::Serve::of(command.stderr(to).spawn().unwrap());
    process::until_models_are_served(data, admin).await;
    let log = || std::fs::read_to_string(&errors).unwrap();
    assert!(!log().contains("\"level\":\"INFO\""), "{}", log());
    std::fs::write(&file, level("info")).unwrap();
    serve.signal("-HUP");
    until("a line below the first level", || log().contains("settings are in force")).await;
    let view = send(admin, get("/v1/config")).await.json();
    assert_eq!((&view["revision"], &view["trigger"]), (&2.into(), &"signal".into()));
}

/// Text of a settings file; `top` as for [`config`].
fn text(top: &str, engines: &[Engine]) -> String {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    config(any, any, top, engines)
}

/// Writes a version of the file and waits until it is in force.
async fn change(proxy: &Proxy, file: &Path, text: &str) {
    let before = proxy.revision();
    std::fs::write(file, text).unwrap();
    proxy.reload();
    until("a new revision", || proxy.revision() > before).await;
}

async fn chat(proxy: &Proxy, model: &str, words: usize, key: Option<&str>) -> Answer {
    let content = "word ".repeat(words);
    let body = format!(
        r#"{{"model":"{model}","max_tokens":2,"messages":[{{"role":"user","content":"{content}"}}]}}"#
    );
    let mut request = post(CHAT, body);
    if let Some(key) = key {
        request.headers_mut().insert("authorization", bearer(key));
    }
    send(proxy.data, request).await
}

async fn cors_origin(proxy: &Proxy) -> Option<String> {
    let request = Request::get("/v1/models")
        .header("host", "test")
        .header("origin", "https://page.example")
        .header("authorization", bearer(KEY))
        .body(Default::default())
        .unwrap();
    let answer = send(proxy.data, request).await;
    let allowed = answer.headers.get("access-control-allow-origin")?;
    Some(allowed.to_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_setting_changes_under_load_without_a_failed_request() {
    let fleet = Emulated::start(2).await;
    let engines = [vllm("e0", fleet.url(0), FREE), vllm("e1", fleet.url(1), FREE)];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.toml");
    let proxy = Proxy::from_file(&file, "", &engines).await;
    let load = Load::start(&proxy, &fleet, 4);
    load.serves_more().await;
    assert_eq!(chat(&proxy, "other", 1, None).await.status, 404);

    change(&proxy, &file, &text("[[models]]\nname = \"m\"\naliases = [\"other\"]\n", &engines))
        .await;
    assert_eq!(chat(&proxy, "other", 1, None).await.status, 200);
    load.serves_more().await;

    change(&proxy, &file, &text("[slo]\nttft_seconds = 7\ntpot_seconds = 0.5\n", &engines)).await;
    let targets = proxy.admin("/v1/targets").await;
    assert_eq!((&targets["ttft_seconds"], &targets["tpot_seconds"]), (&7.0.into(), &0.5.into()));
    assert_eq!(chat(&proxy, "other", 1, None).await.status, 404, "the alias is removed");
    load.serves_more().await;

    change(&proxy, &file, &text("body_max_bytes = 9000\n", &engines)).await;
    assert_eq!(chat(&proxy, "m", 3000, None).await.status, 413);
    load.serves_more().await;

    change(&proxy, &file, &text("body_budget_bytes = 20000\n", &engines)).await;
    assert_eq!(chat(&proxy, "m", 5000, None).await.status, 413, "above the whole budget");
    assert_eq!(chat(&proxy, "m", 1000, None).await.status, 200);

    let cors = "[server.cors]\nallow_origins = [\"https://page.example\"]\n";
    change(&proxy, &file, &text(cors, &engines)).await;
    assert_eq!(cors_origin(&proxy).await.as_deref(), Some("https://page.example"));
    load.serves_more().await;

    let keys = format!("[[auth.keys]]\nname = \"load\"\nkey = \"{KEY}\"\n");
    change(&proxy, &file, &text(&keys, &engines)).await;
    assert_eq!(chat(&proxy, "m", 1, None).await.status, 401);
    assert_eq!(chat(&proxy, "m", 1, Some(KEY)).await.status, 200);
    assert_eq!(cors_origin(&proxy).await, None);
    load.serves_more().await;

    let planner = "[planner]\nenabled = false\n[queue]\nrequests_max = 500\nprefill_backlog_max_seconds = 0.2\n\
                   [placement]\nspill = false\n[retry]\nattempts = 2\n[log]\nlevel = \"warn\"\n";
    change(&proxy, &file, &text(planner, &engines)).await;
    load.serves_more().await;
    assert_eq!(chat(&proxy, "m", 1, None).await.status, 200, "keys are removed");
    load.end().await;
    proxy.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_file_keeps_the_old_settings_and_every_error_is_reported() {
    let fleet = Emulated::start(1).await;
    let engines = [vllm("e0", fleet.url(0), FREE)];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.toml");
    let proxy = Proxy::from_file(&file, "[slo]\nttft_seconds = 3\n", &engines).await;
    let broken = "[slo]\nttft_seconds = -1\n[queue]\nrequest_max = 5\n";
    std::fs::write(&file, text(broken, &engines)).unwrap();
    proxy.reload();
    until("the errors are noted", || proxy.reload_errors().len() == 2).await;
    let errors = proxy.reload_errors();
    assert!(errors[0].contains("slo.ttft_seconds"), "{errors:?}");
    assert!(errors[1].contains("queue.request_max"), "{errors:?}");
    assert_eq!((proxy.revision(), reloads(&proxy).await), (1, (1.0, 0.0)));
    assert_eq!(proxy.admin("/v1/targets").await["ttft_seconds"], Value::from(3.0));

    // Files that cannot be read are errors of the whole version too.
    let keys = "[slo]\nttft_seconds = 4\n[[auth.keys]]\nname = \"a\"\nkey_file = \"/absent/a\"\n\
                [[auth.keys]]\nname = \"b\"\nkey_file = \"/absent/b\"\n";
    std::fs::write(&file, text(keys, &engines)).unwrap();
    proxy.reload();
    until("both files are noted", || {
        let errors = proxy.reload_errors();
        errors.len() == 2 && errors[1].contains("/absent/b")
    })
    .await;
    assert_eq!(proxy.admin("/v1/targets").await["ttft_seconds"], Value::from(3.0));

    change(&proxy, &file, &text("[slo]\nttft_seconds = 5\n", &engines)).await;
    until("no error is left", || proxy.reload_errors().is_empty()).await;
    assert_eq!(reloads(&proxy).await, (2.0, 1.0));
}

/// `tidegate_config_revision` and `tidegate_config_last_reload_success`.
async fn reloads(proxy: &Proxy) -> (f64, f64) {
    let page = send(proxy.admin, get("/metrics")).await.body;
    let value = |name: &str| {
        let line = page.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    (value("tidegate_config_revision"), value("tidegate_config_last_reload_success"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_symbolic_link_that_is_swapped_is_a_changed_file() {
    let fleet = Emulated::start(1).await;
    let engines = [vllm("e0", fleet.url(0), FREE)];
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    // As the kubelet mounts a ConfigMap: FILE → ..data/FILE, ..data → a directory that is replaced.
    for (version, ttft) in [("one", 3), ("two", 4)] {
        std::fs::create_dir(at(version)).unwrap();
        let text = text(&format!("[slo]\nttft_seconds = {ttft}\n"), &engines);
        std::fs::write(at(version).join("tidegate.toml"), text).unwrap();
    }
    std::os::unix::fs::symlink("one", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data/tidegate.toml", at("tidegate.toml")).unwrap();
    let proxy = Proxy::of_file(&at("tidegate.toml")).await;
    std::os::unix::fs::symlink("two", at("..next")).unwrap();
    std::fs::rename(at("..next"), at("..data")).unwrap();
    until("the other version is in force", || proxy.revision() == 2).await;
    assert_eq!(proxy.admin("/v1/targets").await["ttft_seconds"], Value::from(4.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_while_the_process_starts_is_read_again() {
    let fleet = Emulated::start(1).await;
    let engines = [vllm("e0", fleet.url(0), FREE)];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.toml");
    std::fs::write(&file, text("[slo]\nttft_seconds = 4\n", &engines)).unwrap();
    let proxy = Proxy::of_changed_file(&text("[slo]\nttft_seconds = 3\n", &engines), &file).await;
    until("the other version is in force", || proxy.revision() == 2).await;
    assert_eq!(proxy.admin("/v1/targets").await["ttft_seconds"], Value::from(4.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_needs_a_restart_is_named_and_the_others_apply() {
    let fleet = Emulated::start(1).await;
    let engines = [vllm("e0", fleet.url(0), FREE)];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.toml");
    let proxy = Proxy::from_file(&file, "", &engines).await;
    let top =
        "[slo]\nttft_seconds = 6\n[prefix]\nblock_tokens = 32\n[signals]\nscrape_seconds = 9\n";
    change(&proxy, &file, &text(top, &engines)).await;
    until("the reload is noted", || !proxy.needs_restart().is_empty()).await;
    assert_eq!(proxy.needs_restart(), ["prefix.block_tokens", "signals.scrape_seconds"]);
    assert_eq!(proxy.admin("/v1/targets").await["ttft_seconds"], Value::from(6.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_in_force_are_shown_without_secrets_and_another_version_is_checked() {
    let fleet = Emulated::start(1).await;
    let engines = [vllm("e0", fleet.url(0), FREE)];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tidegate.toml");
    let keys = format!("[[auth.keys]]\nname = \"load\"\nkey = \"{KEY}\"\n");
    let proxy = Proxy::from_file(&file, &keys, &engines).await;
    let shown = send(proxy.admin, get("/v1/config")).await;
    assert!(!shown.body.contains(KEY), "{}", shown.body);
    let view = shown.json();
    assert_eq!((&view["revision"], &view["trigger"]), (&1.into(), &"start".into()));
    assert_eq!(view["last_reload"]["at"], Value::Null);
    assert_eq!(view["settings"]["auth"]["keys"][0]["name"], "load");
    assert_eq!(view["settings"]["backends"][0]["url"], fleet.url(0));

    let check = async |top: &str| {
        let mut request = post("/v1/config/check", text(top, &engines));
        request.headers_mut().insert("content-type", "application/toml".parse().unwrap());
        send(proxy.admin, request).await.json()
    };
    let same = check(&keys).await;
    assert_eq!((&same["ok"], &same["changes"]), (&true.into(), &serde_json::json!([])), "{same}");
    let other = check("[slo]\nttft_seconds = 9\n[prefix]\nblock_tokens = 32\n").await;
    assert_eq!(other["changes"], serde_json::json!(["auth.keys[load]", "slo.ttft_seconds"]));
    assert_eq!(other["needs_restart"], serde_json::json!(["prefix.block_tokens"]));
    let broken = check("[slo]\nttft_seconds = -9\n[queue]\nx = 1\n").await;
    assert_eq!((&broken["ok"], broken["errors"].as_array().unwrap().len()), (&false.into(), 2));
    let absent = "[[auth.keys]]\nname = \"a\"\nkey_file = \"/absent/a\"\n";
    let absent = check(absent).await;
    assert!(absent["errors"][0].as_str().unwrap().contains("/absent/a"), "{absent}");
    // Nothing has changed.
    assert_eq!(proxy.admin("/v1/config").await["revision"], 1);

    change(&proxy, &file, &text("[slo]\nttft_seconds = 9\n", &engines)).await;
    until("the reload is noted", || proxy.has_reloaded()).await;
    let view = proxy.admin("/v1/config").await;
    assert_eq!((&view["revision"], &view["trigger"]), (&2.into(), &"signal".into()));
    assert_eq!(view["settings"]["slo"]["ttft_seconds"], 9.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_missing_is_read_when_it_appears() {
    let fleet = Emulated::start(1).await;
    let engines = [vllm("e0", fleet.url(0), FREE)];
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let file = at("tidegate.toml");
    let proxy = Proxy::from_file(&file, "", &engines).await;
    let (client, engine) = (at("client-key"), at("engine-key"));
    let top = format!("[[auth.keys]]\nname = \"a\"\nkey_file = \"{}\"\n", client.display());
    let with = format!("{}api_key_file = \"{}\"\n", text(&top, &engines), engine.display());
    std::fs::write(&file, with).unwrap();
    proxy.reload();
    until("both files are missing", || proxy.reload_errors().len() == 2).await;
    std::fs::write(&client, KEY).unwrap();
    until("one file is missing", || proxy.reload_errors().len() == 1).await;
    assert_eq!(proxy.revision(), 1);
    std::fs::write(&engine, "engine-key").unwrap();
    until("the settings are in force", || proxy.revision() == 2).await;
    until("no error is left", || proxy.reload_errors().is_empty()).await;
    assert_eq!(chat(&proxy, "m", 1, None).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_file_of_an_unchanged_backend_is_applied() {
    let json = "HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let engine = RawEngine::start(json).await;
    let directory = tempfile::tempdir().unwrap();
    let (file, key) = (directory.path().join("tidegate.toml"), directory.path().join("key"));
    std::fs::write(&key, "first-key").unwrap();
    let more =
        format!("engine = \"plain\"\nmodels = [\"m\"]\napi_key_file = \"{}\"", key.display());
    let entry = Engine { more: more.leak(), ..engine.engine("a") };
    let proxy = Proxy::from_file(&file, &format!("{FAST}\n"), &[entry]).await;
    let sends = async |key: &str| {
        let expected = format!("Bearer {key}");
        chat(&proxy, "m", 2, None).await;
        engine.received().iter().any(|request| request.header("authorization") == [&*expected])
    };
    assert!(sends("first-key").await);
    std::fs::write(&key, "second-key").unwrap();
    let replaced = async { while !sends("second-key").await {} };
    tokio::time::timeout(LIMIT, replaced).await.expect("the second key is sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_over_http_read_no_file_outside_the_configuration_directory() {
    let fleet = Emulated::start(2).await;
    let engines = [vllm("e0", fleet.url(0), FREE)];
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let directory = directory.path().join("tidegate");
    std::fs::create_dir(&directory).unwrap();
    let file = directory.join("tidegate.toml");
    let proxy = Proxy::from_file(&file, "", &engines).await;
    let (own, foreign) = (directory.join("key"), elsewhere.path().join("key"));
    std::fs::write(&own, KEY).unwrap();
    std::fs::write(&foreign, KEY).unwrap();
    let check = async |path: &Path| {
        let top = format!("[[auth.keys]]\nname = \"a\"\nkey_file = \"{}\"\n", path.display());
        let mut request = post("/v1/config/check", text(&top, &engines));
        request.headers_mut().insert("content-type", "application/toml".parse().unwrap());
        send(proxy.admin, request).await.json()
    };
    assert_eq!(check(&own).await["ok"], true);
    let refused = check(&foreign).await;
    let error = refused["errors"][0].as_str().unwrap();
    assert!(error.starts_with("auth.keys[0].key_file: ") && error.contains("over HTTP"), "{error}");
    let absent = check(&elsewhere.path().join("absent")).await;
    let same = absent["errors"][0].as_str().unwrap().replace("absent", "key");
    assert_eq!(same, error, "whether a file exists does not show");

    let entry = |path: &Path| {
        let (url, path) = (fleet.url(1), path.display());
        format!(r#"{{"name":"e1","url":"{url}","engine":"vllm","api_key_file":"{path}"}}"#)
    };
    let answer = proxy.add(&entry(&foreign)).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("backends[0].api_key_file"), "{}", answer.body);
    assert_eq!(proxy.add(&entry(&own)).await.status, 200);
}

#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
async fn a_request_loads_the_settings_once() {
    let fleet = Emulated::start(2).await;
    let engines = [vllm("e0", fleet.url(0), FREE), vllm("e1", fleet.url(1), FREE)];
    let proxy = Proxy::start("", &engines).await;
    const REQUESTS: u64 = 200;
    let before = proxy.settings_loads();
    let begun = std::time::Instant::now();
    for n in 0..REQUESTS {
        let body = fleet.chat(n % 2 == 0, 100, 2);
        assert_eq!(proxy.post(CHAT, &body).await.status, 200);
    }
    let loads = proxy.settings_loads() - before;
    // One per request, one per connection (one per request here), and a few per second in the background.
    let beside = 20 * (begun.elapsed().as_secs() + 1);
    assert!(loads >= 2 * REQUESTS && loads <= 2 * REQUESTS + beside, "{loads}");
}
