//! Backends join and leave while the proxy serves.

use crate::client::{get, send, within};
use crate::fleet::Emulated;
use crate::load::Load;
use crate::proxy::{FREE, Proxy, config, two_ports, vllm};

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
    // A task of a removed backend holds its slot until its next wake-up.
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
    assert!(answer.body.contains("one entry per engine"), "{}", answer.body);
    assert_eq!(proxy.remove("unknown").await.status, 404);
    assert_eq!(proxy.names().await, ["e0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_no_backend_of_itself() {
    let fleet = Emulated::start(1).await;
    let directory = tempfile::tempdir().unwrap();
    let (data, admin) = two_ports();
    let text = config(data, admin, FAST, &[vllm("e0", fleet.url(0), FREE)]);
    let proxy = Proxy::of_changed_file(&text, &directory.path().join("tidegate.toml")).await;
    for (port, setting) in [(data, "server.listen"), (admin, "admin.listen")] {
        let answer = proxy.add(&entry("own", &format!("http://{port}"))).await;
        assert_eq!(answer.status, 409, "{}", answer.body);
        assert!(answer.body.contains(setting), "{}", answer.body);
    }
    assert_eq!(proxy.names().await, ["e0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn added_and_removed_backends_survive_a_restart() {
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
async fn the_backends_of_the_file_are_reloaded_and_errors_keep_the_previous_ones() {
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
    // Without a signal: a changed file is detected.
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
    let (ok, output) = backends(&[&["add", "e1", &url][..], &entry[..]].concat());
    assert!(ok && output.starts_with("e1 is added"), "{output}");
    proxy.shows("e1", |e1| e1["health"] == "up" && e1["streams_max"] == 8).await;
    let (ok, listed) = backends(&["list"]);
    let lines: Vec<&str> = listed.lines().collect();
    assert!(ok && lines[1].starts_with("e0 ") && lines[2].starts_with("e1 "), "{listed}");
    assert!(lines[2].contains("up") && lines[2].ends_with(&url), "{listed}");
    let (ok, output) = backends(&["add", "e1", &url, "streams=8"]);
    assert!(!ok && output.contains("streams"), "{output}");
    let (ok, output) = backends(&["remove", "e1", "--now", "--json"]);
    assert!(ok && output.contains("\"left\":1"), "{output}");
    proxy.has(&["e0"]).await;
    let (ok, output) = backends(&["remove", "e1"]);
    assert!(!ok && output.contains("no backend is named"), "{output}");
}

/// Files of a mounted ConfigMap: `FILE.toml` leads to `..data/FILE.toml`, and `..data` to the folder of
/// the version.
struct ConfigMap(tempfile::TempDir);

impl ConfigMap {
    fn new(files: &[(&str, String)]) -> ConfigMap {
        let map = ConfigMap(tempfile::tempdir().unwrap());
        map.write("..1", files);
        std::os::unix::fs::symlink("..1", map.0.path().join("..data")).unwrap();
        for (name, _) in files {
            map.link(name);
        }
        map
    }

    fn link(&self, name: &str) {
        let target = std::path::Path::new("..data").join(name);
        std::os::unix::fs::symlink(target, self.0.path().join(name)).unwrap();
    }

    fn write(&self, version: &str, files: &[(&str, String)]) {
        std::fs::create_dir(self.0.path().join(version)).unwrap();
        for (name, text) in files {
            std::fs::write(self.0.path().join(version).join(name), text).unwrap();
        }
    }

    /// Activates another version by one rename, as the kubelet does.
    fn swap(&self, version: &str, files: &[(&str, String)]) {
        self.write(version, files);
        let (new, data) = (self.0.path().join("..data_tmp"), self.0.path().join("..data"));
        std::os::unix::fs::symlink(version, &new).unwrap();
        std::fs::rename(&new, &data).unwrap();
    }
}

fn file_of(fleet: &Emulated, engines: &[(&str, usize)]) -> String {
    let entry = |(name, engine): &(&str, usize)| {
        format!("[[backends]]\nname = \"{name}\"\nurl = \"{}\"\n{FREE}\n", fleet.url(*engine))
    };
    engines.iter().map(entry).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backends_of_a_config_map_follow_its_symlink_and_errors_keep_the_previous_ones() {
    let fleet = Emulated::start(4).await;
    let (a, b) = ("a.toml", "b.toml");
    let map =
        ConfigMap::new(&[(a, file_of(&fleet, &[("e0", 0)])), (b, file_of(&fleet, &[("e1", 1)]))]);
    std::fs::write(map.0.path().join("README"), "no backends").unwrap();
    let path = map.0.path().display();
    let top =
        format!("{FAST}[[backends]]\nname = \"files\"\n[backends.directory]\npath = \"{path}\"\n");
    let proxy = Proxy::start(&top, &[]).await;
    assert_eq!(proxy.names().await, ["e0", "e1"], "in the first table");
    let load = Load::start(&proxy, &fleet, 4);
    load.serves_more().await;
    map.swap("..2", &[(a, file_of(&fleet, &[("e0", 0), ("e2", 2)])), (b, "[[backends".into())]);
    proxy.has(&["e0", "e1", "e2"]).await;
    // A text of the same length; the files' other backends stay.
    map.swap("..3", &[(a, file_of(&fleet, &[("e0", 0), ("e3", 3)])), (b, "[[backends".into())]);
    proxy.has(&["e0", "e1", "e3"]).await;
    load.serves_more().await;
    std::fs::remove_file(map.0.path().join(b)).unwrap();
    proxy.has(&["e0", "e3"]).await;
    load.serves_more().await;
    let (version, aside) = (map.0.path().join("..3"), map.0.path().join("..aside"));
    std::fs::rename(&version, &aside).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(proxy.names().await, ["e0", "e3"], "links without a target");
    std::fs::rename(&aside, &version).unwrap();
    let moved = map.0.path().with_extension("gone");
    std::fs::rename(map.0.path(), &moved).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(proxy.names().await, ["e0", "e3"], "a directory that cannot be read");
    std::fs::rename(&moved, map.0.path()).unwrap();
    load.end().await;
    proxy.settles().await;
}

/// A proxy whose backends are the files of a directory.
async fn of_directory(path: &std::path::Path) -> Proxy {
    let path = path.display();
    let top =
        format!("{FAST}[[backends]]\nname = \"files\"\n[backends.directory]\npath = \"{path}\"\n");
    Proxy::start(&top, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file_keeps_its_backends_and_a_deleted_one_does_not() {
    let fleet = Emulated::start(2).await;
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (directory.path().join("a.toml"), directory.path().join("b.toml"));
    std::fs::write(&a, file_of(&fleet, &[("e0", 0)])).unwrap();
    std::fs::write(&b, file_of(&fleet, &[("e1", 1)])).unwrap();
    let proxy = of_directory(directory.path()).await;
    for unfinished in ["", "# engines\n", "[[backends]]\nname = \"e"] {
        std::fs::write(&a, unfinished).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        assert_eq!(proxy.names().await, ["e0", "e1"], "{unfinished:?}");
    }
    std::fs::write(&a, "backends = []\n").unwrap();
    proxy.has(&["e1"]).await;
    std::fs::write(&a, file_of(&fleet, &[("e0", 0)])).unwrap();
    proxy.has(&["e0", "e1"]).await;
    std::fs::remove_file(&b).unwrap();
    proxy.has(&["e0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_always_being_written_delays_neither_others_nor_itself() {
    let fleet = Emulated::start(3).await;
    let directory = tempfile::tempdir().unwrap();
    let (busy, other) = (directory.path().join("a.toml"), directory.path().join("b.toml"));
    std::fs::write(&busy, file_of(&fleet, &[("e0", 0)])).unwrap();
    let proxy = of_directory(directory.path()).await;
    let text = file_of(&fleet, &[("e0", 0), ("e2", 2)]);
    let writing = tokio::spawn(async move {
        for count in 0_u64.. {
            std::fs::write(&busy, format!("# {count}\n{text}")).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        }
    });
    std::fs::write(&other, file_of(&fleet, &[("e1", 1)])).unwrap();
    proxy.has(&["e0", "e1", "e2"]).await;
    assert!(!writing.is_finished());
    writing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_addresses_of_a_name_are_backends() {
    let fleet = Emulated::start(1).await;
    let port = fleet.address(0).port();
    let top = format!(
        "{FAST}[[backends]]\nname = \"dns\"\n{FREE}\n[backends.dns]\nname = \"127.0.0.1\"\nport = {port}\n"
    );
    let proxy = Proxy::start(&top, &[]).await;
    assert_eq!(proxy.names().await, ["dns-127.0.0.1"]);
    let answer = proxy.post("/v1/chat/completions", &fleet.chat(true, 100, 5)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_backends_that_have_left_are_gone() {
    let fleet = Emulated::start(2).await;
    let proxy = Proxy::start(FAST, &[vllm("kept", fleet.url(0), FREE)]).await;
    let series = async || {
        let page = send(proxy.admin, get("/metrics")).await.body;
        let samples = page.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        samples.map(str::to_owned).collect::<Vec<String>>()
    };
    let of = |all: &[String], name: &str| {
        all.iter().filter(|line| line.contains(&format!("backend=\"{name}\""))).count()
    };
    for round in 0..3 {
        let name = format!("pod-{round}");
        assert_eq!(proxy.add(&entry(&name, &fleet.url(1))).await.status, 200);
        proxy.shows(&name, |backend| backend["health"] == "up").await;
        let body = fleet.chat(true, 100, 5);
        assert_eq!(proxy.post("/v1/chat/completions", &body).await.status, 200);
        assert!(of(&series().await, &name) > 10, "gauges and counters of the backend");
        assert_eq!(proxy.remove(&name).await.status, 200);
        proxy.has(&["kept"]).await;
        let gone = async {
            while of(&series().await, &name) > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        within(gone).await;
    }
    assert!(of(&series().await, "kept") > 10);
}
