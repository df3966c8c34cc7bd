//! Several gateways that exchange their loads: a static list of processes that are killed and stopped, a
//! Lease that names the leader, certificates between them.

use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinHandle;

use crate::certificates::Authority;
use crate::client::{get, leave_later, post, send, until, within};
use crate::cluster::Cluster;
use crate::fake::{Act, Fake, chat_answer};
use crate::fleet::Emulated;
use crate::process::{Serve, serve, until_models_are_served};
use crate::proxy::{Engine, FREE, chat, config, plain, two_ports, vllm};

const TOKEN: &str = "0123456789abcdef";

struct Gateway {
    process: Serve,
    data: SocketAddr,
    admin: SocketAddr,
}

impl Gateway {
    async fn start(top: &str, engines: &[Engine]) -> Gateway {
        let (data, admin) = two_ports();
        let process = serve(&config(data, admin, top, engines));
        within(until_models_are_served(data, admin)).await;
        Gateway { process, data, admin }
    }

    async fn fleet(&self) -> Value {
        send(self.admin, get("/v1/fleet")).await.json()
    }

    async fn backend(&self, name: &str) -> Value {
        let fleet = self.fleet().await;
        let backends = fleet["backends"].as_array().unwrap();
        backends.iter().find(|one| one["name"] == name).unwrap().clone()
    }

    /// Waits until the view of the fleet satisfies the condition.
    async fn shows(&self, what: impl Fn(&Value) -> bool) {
        let waiting = async {
            while !what(&self.fleet().await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(waiting).await;
    }

    /// Waits until the streams of other gateways on all backends sum to this number.
    async fn counts(&self, streams: u64) {
        self.shows(|fleet| streams_of_others(fleet) == streams).await;
    }

    async fn leads(&self) -> bool {
        let page = send(self.admin, get("/metrics")).await.body;
        page.lines().any(|line| line == "tidegate_leader 1")
    }

    fn holds(&self) -> JoinHandle<()> {
        leave_later(self.data, post("/v1/chat/completions", chat(true)))
    }
}

fn streams_of_others(fleet: &Value) -> u64 {
    let backends = fleet["backends"].as_array().unwrap();
    backends.iter().filter_map(|backend| backend["others"]["streams"].as_u64()).sum()
}

/// Returns the `[gateways]` section of each address, with further lines.
fn listed(addresses: &[SocketAddr], more: &str) -> Vec<String> {
    let scheme = if more.contains("[gateways.tls]") { "https" } else { "http" };
    let urls: Vec<String> = addresses.iter().map(|a| format!("\"{scheme}://{a}\"")).collect();
    let section = |address: &SocketAddr| {
        format!(
            "[planner]\nenabled = false\n[gateways]\nlisten = \"{address}\"\npeers = [{}]\n{more}\n",
            urls.join(", ")
        )
    };
    addresses.iter().map(section).collect()
}

fn addresses() -> Vec<SocketAddr> {
    let ((a, b), (c, _)) = (two_ports(), two_ports());
    vec![a, b, c]
}

fn token_file(directory: &Path, name: &str, token: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, token).unwrap();
    format!("token_file = \"{}\"", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn placement_counts_the_streams_of_other_gateways() {
    let fakes = Fake::start_sharing([], Act::Silent, 2).await;
    let engines = || {
        let mut engines = [plain("a", &fakes[0]), plain("b", &fakes[1])];
        for engine in &mut engines {
            engine.more = "engine = \"plain\"\nstreams_max = 1";
        }
        engines
    };
    let directory = tempfile::tempdir().unwrap();
    let tops = listed(&addresses(), &token_file(directory.path(), "t", TOKEN));
    let mut gateways = Vec::new();
    for top in &tops {
        gateways.push(Gateway::start(top, &engines()).await);
    }
    let [first, second, third] = gateways.try_into().ok().unwrap();
    for gateway in [&first, &second, &third] {
        gateway.shows(|fleet| fleet["other_gateways"] == 2).await;
    }
    assert!(first.leads().await && !second.leads().await && !third.leads().await);
    // Each engine has capacity for one stream: the second gateway's stream goes to the free engine.
    let held = first.holds();
    second.counts(1).await;
    let other = second.holds();
    until("each engine has one", || fakes.iter().all(|fake| fake.hanging() == 1)).await;
    // The third gateway has sent nothing, and no engine has capacity.
    third.counts(2).await;
    let waiting = third.holds();
    third.shows(|fleet| fleet["waiting_requests"] == 1).await;
    assert_eq!(fakes.iter().map(Fake::hanging).sum::<usize>(), 2);
    // A stream ends at another gateway: the waiting request takes its place.
    held.abort();
    first.counts(2).await;
    until("it is placed", || fakes.iter().map(|fake| fake.sent().len()).sum::<usize>() == 3).await;
    drop((other, waiting));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_and_the_loads_of_a_killed_gateway_are_dropped() {
    let engine = Fake::start([], Act::Silent).await;
    let tops = listed(&addresses(), "");
    let engines = || [plain("a", &engine)];
    let mut first = Gateway::start(&tops[0], &engines()).await;
    let second = Gateway::start(&tops[1], &engines()).await;
    let third = Gateway::start(&tops[2], &engines()).await;
    let streams = [first.holds(), second.holds(), third.holds()];
    for gateway in [&first, &second, &third] {
        gateway.counts(2).await;
    }
    assert!(first.leads().await);
    first.process.child.kill().unwrap();
    for gateway in [&second, &third] {
        gateway.shows(|fleet| fleet["other_gateways"] == 1).await;
        gateway.counts(1).await;
    }
    assert!(second.leads().await && !third.leads().await);
    // The first returns; the second remains leader.
    let first = Gateway::start(&tops[0], &engines()).await;
    first.counts(2).await;
    assert!(second.leads().await && !first.leads().await);
    // The loads of a stopped gateway are dropped, and counted again when it continues.
    third.process.signal("-STOP");
    first.counts(1).await;
    third.process.signal("-CONT");
    first.counts(2).await;
    drop(streams);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_fails_no_request_and_its_roles_stay() {
    let fleet = Emulated::start(2).await;
    let engines = || [vllm("e0", fleet.url(0), FREE), vllm("e1", fleet.url(1), FREE)];
    let tops = listed(&addresses(), "");
    let mut leader = Gateway::start(&tops[0], &engines()).await;
    let second = Gateway::start(&tops[1], &engines()).await;
    second.shows(|fleet| fleet["other_gateways"] == 1).await;
    let role = |role: &str| post("/v1/backends/e0/role", format!("{{\"role\":\"{role}\"}}"));
    assert_eq!(send(second.admin, role("decode")).await.status, 409, "it follows");
    assert_eq!(send(leader.admin, role("decode")).await.status, 200);
    second.shows(|fleet| fleet["backends"][0]["role"] == "decode").await;
    let load = async |from: &Gateway, count: usize| {
        for n in 0..count {
            let body = fleet.chat(n % 2 == 0, 100 + n, 20);
            let answer = send(from.data, post("/v1/chat/completions", body)).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            assert!(!answer.body.contains("\"error\""), "{}", answer.body);
        }
    };
    load(&second, 5).await;
    leader.process.child.kill().unwrap();
    load(&second, 20).await;
    second.shows(|fleet| fleet["other_gateways"] == 0).await;
    let taking_over = async {
        while !second.leads().await {
            load(&second, 1).await;
        }
    };
    within(taking_over).await;
    assert_eq!(second.backend("e0").await["role"], "decode", "the last plan stays in force");
    assert_eq!(send(second.admin, role("mixed")).await.status, 200, "it leads");
    load(&second, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_of_the_lease_sums_the_loads() {
    let engine = Fake::start([], Act::Silent).await;
    let cluster = Cluster::fake().await;
    let api = cluster.settings.api_server.as_ref().unwrap();
    let top = |address: SocketAddr| {
        format!(
            "[planner]\nenabled = false\n[kubernetes]\napi_server = \"{api}\"\nnamespace = \"llm\"\n\
             [gateways]\nlisten = \"{address}\"\n[gateways.kubernetes]\nlease = \"tidegate\"\n\
             duration_seconds = 1.5\nrenew_deadline_seconds = 1\nretry_seconds = 0.2\n"
        )
    };
    let mut gateways = Vec::new();
    for address in addresses() {
        gateways.push(Gateway::start(&top(address), &[plain("a", &engine)]).await);
    }
    let streams: Vec<_> = gateways.iter().map(Gateway::holds).collect();
    for gateway in &gateways {
        gateway.counts(2).await;
    }
    let mut leader = None;
    for (i, gateway) in gateways.iter().enumerate() {
        if gateway.leads().await {
            leader = Some(i);
        }
    }
    let mut leader = gateways.remove(leader.expect("a leader"));
    leader.process.child.kill().unwrap();
    for gateway in &gateways {
        gateway.counts(1).await;
    }
    drop(streams);
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_with_another_token_or_certificate_are_refused() {
    let engine = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) =
        (Authority::new(directory.path(), "ours"), Authority::new(directory.path(), "theirs"));
    let tls = |authority: &Authority, name: &str| {
        let leaf = authority.leaf(directory.path(), name, name);
        let ca = ours.file.display();
        format!("[gateways.tls]\n{}client_ca_file = \"{ca}\"\n", leaf.toml())
    };
    let good = tls(&ours, "good");
    let token = token_file(directory.path(), "good-token", TOKEN);
    let other = token_file(directory.path(), "other-token", "fedcba9876543210");
    for (here, there, is_accepted) in [
        (token.clone(), token.clone(), true),
        (token.clone(), other, false),
        (good.clone(), good.clone(), true),
        (format!("{token}\n{good}"), tls(&theirs, "stranger"), false),
    ] {
        let addresses = addresses();
        let first = listed(&addresses, &here);
        let second = listed(&addresses, &there);
        let first = Gateway::start(&first[0], &[plain("a", &engine)]).await;
        let second = Gateway::start(&second[1], &[plain("a", &engine)]).await;
        match is_accepted {
            true => {
                first.shows(|fleet| fleet["other_gateways"] == 1).await;
                second.shows(|fleet| fleet["other_gateways"] == 1).await;
            }
            // Each leads itself: neither accepts the other's reports.
            false => {
                let leads = async {
                    while !(first.leads().await && second.leads().await) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                within(leads).await;
                assert_eq!(first.fleet().await["other_gateways"], 0);
                assert_eq!(second.fleet().await["other_gateways"], 0);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_is_taken_without_a_restart_and_the_old_one_counts_for_a_while() {
    let engine = Fake::start([], Act::Json(200, chat_answer("x"))).await;
    let engines = [plain("a", &engine)];
    let directory = tempfile::tempdir().unwrap();
    let mut addresses = addresses();
    addresses.rotate_left(1);
    let (old, new) = (TOKEN, "fedcba9876543210");
    let tops: Vec<String> = [("first", old), ("second", old), ("third", new)]
        .into_iter()
        .enumerate()
        .map(|(i, (name, token))| {
            listed(&addresses, &token_file(directory.path(), name, token))[i].clone()
        })
        .collect();
    let first = Gateway::start(&tops[0], &engines).await;
    let second = Gateway::start(&tops[1], &engines).await;
    first.shows(|fleet| fleet["other_gateways"] == 1).await;
    // The token changes at the first gateway alone: the second one, even if it restarts, is still heard.
    token_file(directory.path(), "first", new);
    first.process.signal("-HUP");
    let third = Gateway::start(&tops[2], &engines).await;
    for gateway in [&first, &second, &third] {
        gateway.shows(|fleet| fleet["other_gateways"] == 2).await;
    }
    drop(second);
    first.shows(|fleet| fleet["other_gateways"] == 1).await;
    let second = Gateway::start(&tops[1], &engines).await;
    for gateway in [&first, &second, &third] {
        gateway.shows(|fleet| fleet["other_gateways"] == 2).await;
    }
    assert!(first.leads().await && !second.leads().await && !third.leads().await);
}
