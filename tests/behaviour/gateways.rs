//! Two gateways and one Lease in the fake API server: processes that are killed, stopped and cut off.

use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use tidegate_emulator::{EmulatedEngine, SglangMode};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{get, post, send, until, within};
use crate::cluster::Cluster;
use crate::fleet::Emulated;
use crate::process::{Serve, serve, until_models_are_served};
use crate::proxy::{Engine, FREE, config, two_ports, vllm};

/// Short times. Automatic role changes are off, so that roles change by commands only.
const TOP: &str = "[probe]\ntimeout_seconds = 15\n[planner]\nenabled = false\n[gateways.kubernetes]\n\
                   lease = \"tidegate\"\nduration_seconds = 1.5\nrenew_deadline_seconds = 1\nretry_seconds = 0.2\n";

struct Gateway {
    process: Serve,
    data: SocketAddr,
    admin: SocketAddr,
}

impl Gateway {
    async fn start(cluster: &Cluster, fleet: &Emulated) -> Gateway {
        let engines = [vllm("e0", fleet.url(0), FREE), vllm("e1", fleet.url(1), FREE)];
        Gateway::with(cluster, &engines).await
    }

    async fn with(cluster: &Cluster, engines: &[Engine]) -> Gateway {
        let (data, admin) = two_ports();
        let api = cluster.settings.api_server.as_ref().unwrap();
        let top = format!("{TOP}[kubernetes]\napi_server = \"{api}\"\nnamespace = \"llm\"\n");
        let text = config(data, admin, &top, engines);
        let text = text.replace("linger_seconds = 0", "linger_seconds = 15");
        let gateway = Gateway { process: serve(&text), data, admin };
        within(until_models_are_served(data, admin)).await;
        gateway
    }

    /// Value of a gauge; `None` if it is absent.
    async fn gauge(&self, name: &str) -> Option<f64> {
        let page = send(self.admin, get("/metrics")).await.body;
        let prefix = format!("{name} ");
        page.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok())
    }

    async fn leads(&self) -> bool {
        self.gauge("tidegate_leader").await == Some(1.0)
    }

    async fn role(&self, backend: &str) -> Value {
        let fleet = send(self.admin, get("/v1/fleet")).await.json();
        let backends = fleet["backends"].as_array().unwrap();
        backends.iter().find(|one| one["name"] == backend).unwrap()["role"].clone()
    }

    async fn set_role(&self, backend: &str, role: &str) -> u16 {
        let request =
            post(&format!("/v1/backends/{backend}/role"), format!("{{\"role\":\"{role}\"}}"));
        send(self.admin, request).await.status.as_u16()
    }

    async fn shows(&self, backend: &str, role: &str) {
        let waiting = async {
            while self.role(backend).await != role {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        within(waiting).await;
    }

    async fn takes_over(&self) {
        let waiting = async {
            while !self.leads().await {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        within(waiting).await;
    }

    async fn stops_leading(&self) {
        let waiting = async {
            while self.leads().await {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        within(waiting).await;
    }
}

/// Two gateways, the leader first.
async fn two(cluster: &Cluster, fleet: &Emulated) -> (Gateway, Gateway) {
    let a = Gateway::start(cluster, fleet).await;
    a.takes_over().await;
    let b = Gateway::start(cluster, fleet).await;
    assert!(!b.leads().await);
    (a, b)
}

/// Clients of one gateway; a request that fails ends the test.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Load {
    fn start(gateway: &Gateway, fleet: &Emulated) -> Load {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut clients = JoinSet::new();
        for n in 0..3 {
            let body = fleet.chat(n % 2 == 0, 100 + n * 150, 20);
            let (data, stop, served) = (gateway.data, Arc::clone(&stop), Arc::clone(&served));
            clients.spawn(async move {
                while !stop.load(SeqCst) {
                    let answer = send(data, post("/v1/chat/completions", body.clone())).await;
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    assert!(!answer.body.contains("\"error\""), "{}", answer.body);
                    served.fetch_add(1, SeqCst);
                }
            });
        }
        Load { stop, served, clients }
    }

    async fn end(mut self) {
        let before = self.served.load(SeqCst);
        until("ten more requests", || self.served.load(SeqCst) > before + 10).await;
        self.stop.store(true, SeqCst);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_take_the_leaders_roles_and_a_killed_leader_is_replaced() {
    let fleet = Emulated::start(2).await;
    let cluster = Cluster::fake().await;
    let (mut leader, follower) = two(&cluster, &fleet).await;
    assert_eq!(leader.gauge("tidegate_leader_epoch").await, Some(1.0));
    assert_eq!(follower.set_role("e0", "decode").await, 409, "it follows");
    assert_eq!(leader.set_role("e0", "decode").await, 200);
    assert_eq!(leader.set_role("e1", "prefill").await, 200);
    follower.shows("e0", "decode").await;
    follower.shows("e1", "prefill").await;
    let load = Load::start(&follower, &fleet);
    leader.process.child.kill().unwrap();
    let killed = Instant::now();
    follower.takes_over().await;
    eprintln!("a new leader {:.2} s after kill -9", killed.elapsed().as_secs_f64());
    assert_eq!(follower.gauge("tidegate_leader_epoch").await, Some(2.0));
    assert_eq!(follower.role("e0").await, "decode", "the last plan stays in force");
    // A gateway that starts later takes the plan of the Lease.
    let third = Gateway::start(&cluster, &fleet).await;
    third.shows("e0", "decode").await;
    third.shows("e1", "prefill").await;
    assert!(!third.leads().await);
    assert_eq!(follower.set_role("e0", "mixed").await, 200);
    third.shows("e0", "mixed").await;
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_for_a_while_is_fenced() {
    let fleet = Emulated::start(2).await;
    let cluster = Cluster::fake().await;
    let (old, new) = two(&cluster, &fleet).await;
    let load = Load::start(&new, &fleet);
    old.process.signal("-STOP");
    new.takes_over().await;
    assert_eq!(new.set_role("e0", "decode").await, 200);
    old.process.signal("-CONT");
    assert_eq!(old.set_role("e0", "prefill").await, 409, "its lease ended while it was stopped");
    old.shows("e0", "decode").await;
    assert!(!old.leads().await && new.leads().await);
    load.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_api_server_the_last_plan_stays_and_no_gateway_plans() {
    let fleet = Emulated::start(2).await;
    let mut cluster = Cluster::fake().await;
    let (a, b) = two(&cluster, &fleet).await;
    assert_eq!(a.set_role("e0", "decode").await, 200);
    b.shows("e0", "decode").await;
    let (first, second) = (Load::start(&a, &fleet), Load::start(&b, &fleet));
    cluster.fake.as_mut().unwrap().stop();
    a.stops_leading().await;
    assert_eq!((a.set_role("e0", "prefill").await, b.set_role("e0", "prefill").await), (409, 409));
    assert_eq!((a.role("e0").await, b.role("e0").await), ("decode".into(), "decode".into()));
    cluster.fake.as_mut().unwrap().listen().await;
    let one_leads = async {
        while a.leads().await == b.leads().await {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    within(one_leads).await;
    assert_eq!((a.role("e0").await, b.role("e0").await), ("decode".into(), "decode".into()));
    first.end().await;
    second.end().await;
}

/// A leader that loses the API server while an engine drains for its role switch.
#[tokio::test(flavor = "multi_thread")]
async fn a_former_leader_calls_no_engine() {
    let p = Emulated::of(2, EmulatedEngine::Sglang(SglangMode::Prefill)).await;
    let d = Emulated::of(1, EmulatedEngine::Sglang(SglangMode::Decode)).await;
    let switchable = |name, engines: &Emulated, engine, role: &str| {
        let port = engines.address(engine).port();
        let more = format!(
            "engine = \"sglang\"\nconnector = \"bootstrap\"\nrole_switch = true\n\
             role = \"{role}\"\nbootstrap_port = {port}\n"
        );
        vllm(name, engines.url(engine), more.leak())
    };
    let engines = [
        switchable("p0", &p, 0, "prefill"),
        switchable("p1", &p, 1, "prefill"),
        switchable("d", &d, 0, "decode"),
    ];
    let mut cluster = Cluster::fake().await;
    let leader = Gateway::with(&cluster, &engines).await;
    leader.takes_over().await;
    assert_eq!(leader.set_role("p0", "decode").await, 200);
    leader.shows("p0", "decode").await;
    // A stream of at least 3 s at 1.5 ms a step keeps its engine from the switch.
    let body = p.chat(true, 200, 2000);
    let data = leader.data;
    let stream =
        tokio::spawn(async move { send(data, post("/v1/chat/completions", body)).await.status });
    let on = || (p.stats(0).running, d.stats(0).running);
    until("it decodes", || on() != (0, 0)).await;
    let (name, launched, engine) =
        if on().1 > 0 { ("d", "decode", d.address(0)) } else { ("p0", "decode", p.address(0)) };
    assert_eq!(leader.set_role(name, "prefill").await, 200);
    leader.shows(name, "draining").await;
    cluster.fake.as_mut().unwrap().stop();
    leader.stops_leading().await;
    assert_eq!(within(stream).await.unwrap(), 200);
    leader.shows(name, launched).await;
    let info = send(engine, get("/server_info")).await.json();
    assert_eq!(info["internal_states"][0]["disaggregation_mode"], launched, "it was not called");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_drains_releases_its_lease() {
    let fleet = Emulated::start(2).await;
    let cluster = Cluster::fake().await;
    let (mut leader, follower) = two(&cluster, &fleet).await;
    leader.process.signal("-TERM");
    follower.takes_over().await;
    let exit = leader.process.child.try_wait().unwrap();
    assert!(exit.is_none(), "the Lease is released at the start of the drain: {exit:?}");
    assert!(!leader.leads().await);
}
