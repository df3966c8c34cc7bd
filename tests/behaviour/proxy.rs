//! Proxy for one test, on its own ports, stopped on drop.

use serde_json::Value;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;
use tidegate_proxy::Running;
use tidegate_proxy::what_if::Simulator;
use tidegate_settings::Settings;
use tokio::net::TcpSocket;

use crate::client::{Answer, get, post, send, until, within};
use crate::fake::Fake;

pub struct Proxy {
    pub data: SocketAddr,
    pub admin: SocketAddr,
    running: Running,
}

/// Settings of a backend in a test.
pub struct Engine {
    pub name: &'static str,
    pub url: String,
    /// Further TOML lines for its table.
    pub more: &'static str,
}

pub fn plain(name: &'static str, fake: &Fake) -> Engine {
    Engine { name, url: fake.url(), more: "engine = \"plain\"" }
}

pub const PREFILL: &str = "engine = \"vllm\"\nconnector = \"nixl\"\nkv_role = \"kv_both\"\nrole = \"prefill\"\npin = true";
pub const DECODE: &str =
    "engine = \"vllm\"\nconnector = \"nixl\"\nkv_role = \"kv_both\"\nrole = \"decode\"\npin = true";
/// Settings under which every eligible request is split.
pub const SPLIT: &str = "[placement]\nspill = false\n";

pub const FREE: &str = "engine = \"vllm\"\nconnector = \"nixl\"\nkv_role = \"kv_both\"";

pub fn vllm(name: &'static str, url: String, more: &'static str) -> Engine {
    Engine { name, url, more }
}

/// An address that refuses connections while this value exists: its port is bound, without a listener.
pub struct RefusingAddress {
    pub address: SocketAddr,
    _bound: TcpSocket,
}

impl RefusingAddress {
    pub fn new() -> RefusingAddress {
        let bound = TcpSocket::new_v4().unwrap();
        bound.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        RefusingAddress { address: bound.local_addr().unwrap(), _bound: bound }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Ports below the ephemeral range: otherwise an engine or client of another test could take a port
/// between its choice and its use.
const PORTS: std::ops::Range<u32> = 20_000..32_000;

/// Returns two free ports, each returned once per process.
pub fn two_ports() -> (SocketAddr, SocketAddr) {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Concurrent runs start far apart.
    let begin = std::process::id().wrapping_mul(127);
    let next = || loop {
        let number = begin.wrapping_add(GIVEN.fetch_add(1, Relaxed));
        let port = PORTS.start + number % (PORTS.end - PORTS.start);
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    };
    (next(), next())
}

/// Relaxed limits for conditions not under test: on a busy machine a probe takes longer than a
/// second, and two such probes take an engine out of service.
const RELAXED: &str = "\n[probe]\ntimeout_seconds = 15\n";

/// Returns the settings of a test: `top` is TOML for the sections; the engines are appended.
pub fn config(data: SocketAddr, admin: SocketAddr, top: &str, engines: &[Engine]) -> String {
    let mut text = format!(
        "[server]\nlisten = [\"{data}\"]\nlinger_seconds = 0\ndrain_seconds = 5\nthreads = 2\n{}\n\
         [admin]\nlisten = \"{admin}\"\n{}\n",
        section(top, "server"),
        // The additional key of its section comes first.
        rest(top).trim_start_matches("[admin]\n"),
    );
    if !top.contains("[probe]") {
        text += RELAXED;
    }
    for engine in engines {
        let Engine { name, url, more } = engine;
        text += &format!("\n[[backends]]\nname = \"{name}\"\nurl = \"{url}\"\n{more}\n");
    }
    text
}

/// Lines of `top` before its first section belong to `[server]`.
fn section<'a>(top: &'a str, _server: &str) -> &'a str {
    top.split("\n[").next().filter(|first| !first.starts_with('[')).unwrap_or("")
}

fn rest(top: &str) -> String {
    match top.find('[') {
        Some(at) if top[..at].is_empty() || top[..at].ends_with('\n') => top[at..].to_owned(),
        _ => String::new(),
    }
}

impl Proxy {
    /// Starts a proxy in front of these engines and waits until it serves their models.
    pub async fn start(top: &str, engines: &[Engine]) -> Proxy {
        let proxy = Proxy::start_cold(top, engines);
        proxy.ready().await;
        proxy
    }

    /// Starts a proxy without waiting for its engines' models.
    pub fn start_cold(top: &str, engines: &[Engine]) -> Proxy {
        Proxy::start_simulating(top, engines, None)
    }

    /// Starts a proxy with a simulator for `/v1/what-if`, without waiting for its engines' models.
    pub fn start_simulating(top: &str, engines: &[Engine], simulator: Option<Simulator>) -> Proxy {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let text = config(any, any, top, engines);
        Proxy::of(&text, None, simulator)
    }

    /// Starts a proxy with the settings in a file, which it reads again on [`Proxy::reload`].
    pub async fn from_file(file: &std::path::Path, top: &str, engines: &[Engine]) -> Proxy {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let text = config(any, any, top, engines);
        std::fs::write(file, &text).unwrap();
        let proxy = Proxy::of(&text, Some(file), None);
        proxy.ready().await;
        proxy
    }

    /// Starts a proxy with the settings in an existing file.
    pub async fn of_file(file: &std::path::Path) -> Proxy {
        Proxy::of_changed_file(&std::fs::read_to_string(file).unwrap(), file).await
    }

    /// Starts a proxy with `text`, as if it had been read from the file before the file changed.
    pub async fn of_changed_file(text: &str, file: &std::path::Path) -> Proxy {
        let proxy = Proxy::of(text, Some(file), None);
        proxy.ready().await;
        proxy
    }

    fn of(text: &str, file: Option<&std::path::Path>, simulator: Option<Simulator>) -> Proxy {
        let mut settings = Settings::parse(text).unwrap_or_else(|problems| {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            panic!("{}\n{text}", lines.join("\n"))
        });
        settings.file = file.map(std::path::Path::to_owned);
        let running = tidegate_proxy::spawn_with(&settings, simulator)
            .unwrap_or_else(|e| panic!("{e}\n{text}"));
        let (data, admin) = (running.addresses.data[0], running.addresses.admin);
        Proxy { data, admin, running }
    }

    /// Reloads the configuration, as SIGHUP does.
    pub fn reload(&self) {
        self.running.proxy.reload.notify_one();
    }

    /// Revision of the settings in force.
    pub fn revision(&self) -> u64 {
        self.running.proxy.settings.load().revision
    }

    /// Errors of the last reload.
    pub fn reload_errors(&self) -> Vec<String> {
        self.running.proxy.settings.last_reload().errors.clone()
    }

    /// Returns whether a reload has been recorded.
    pub fn has_reloaded(&self) -> bool {
        self.running.proxy.settings.last_reload().at.is_some()
    }

    /// Settings of the file that need a restart, after the last reload.
    pub fn needs_restart(&self) -> Vec<String> {
        self.running.proxy.settings.last_reload().needs_restart.clone()
    }

    /// Returns how often the settings in force have been loaded.
    pub fn settings_loads(&self) -> u64 {
        self.running.proxy.settings.loads()
    }

    /// Returns the start-up error of a proxy in front of these engines.
    pub fn refusal(top: &str, engines: &[Engine]) -> String {
        let (data, admin) = two_ports();
        let text = config(data, admin, top, engines);
        let settings = Settings::parse(&text).unwrap();
        tidegate_proxy::spawn(&settings).err().map(|error| error.to_string()).unwrap_or_default()
    }

    /// Returns one backend as shown by `/v1/fleet`.
    pub async fn backend(&self, name: &str) -> Value {
        let fleet = self.admin("/v1/fleet").await;
        let backends = fleet["backends"].as_array().unwrap();
        backends.iter().find(|backend| backend["name"] == name).unwrap().clone()
    }

    /// Waits until `/v1/fleet` shows a backend with this state.
    pub async fn shows(&self, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let waiting = async {
            loop {
                let backend = self.backend(name).await;
                if holds(&backend) {
                    return backend;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(waiting).await
    }

    pub async fn ready(&self) {
        let listens = |address| std::net::TcpStream::connect(address).is_ok();
        until("the proxy listens", || listens(self.data) && listens(self.admin)).await;
        let fleet = &self.running.proxy.fleet;
        let serves_models = || {
            let table = fleet.table();
            table.models.values().any(|pool| table.backends(*pool).len() == fleet.backends().len())
        };
        until("the proxy serves its models", serves_models).await;
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        send(self.data, post(path, body.to_owned())).await
    }

    pub async fn admin(&self, path: &str) -> Value {
        send(self.admin, get(path)).await.json()
    }

    pub async fn set_role(&self, backend: &str, body: &str) -> Answer {
        let path = format!("/v1/backends/{backend}/role");
        send(self.admin, post(&path, body.to_owned())).await
    }

    /// Returns the role of a backend in `/v1/fleet`.
    pub async fn role_of(&self, backend: &str) -> String {
        let fleet = self.admin("/v1/fleet").await;
        let mut all = fleet["backends"].as_array().unwrap().iter();
        all.find(|b| b["name"] == backend).unwrap()["role"].as_str().unwrap().to_owned()
    }

    /// Waits until a backend has this role.
    pub async fn takes_role(&self, backend: &str, role: &str) {
        for _ in 0..500 {
            if self.role_of(backend).await == role {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{backend} is {}, not {role}", self.role_of(backend).await);
    }

    /// Waits until the plan history has an entry with this result.
    pub async fn journals(&self, result: &str) {
        for _ in 0..500 {
            if self.admin("/v1/plan/history").await.to_string().contains(result) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the journal has no entry {result}");
    }

    /// Returns whether every counter is zero.
    pub fn is_settled(&self) -> bool {
        let proxy = &self.running.proxy;
        let settled = |b: &std::sync::Arc<tidegate_proxy::fleet::Backend>| {
            let account = &b.account;
            let targets = account.tightest_targets(tidegate_types::Seconds::ZERO);
            account.balance().is_settled()
                && account.batch_streams() == Default::default()
                && targets == Default::default()
        };
        proxy.fleet.registry.is_empty()
            && proxy.queue.signal().waiting() == 0
            && proxy.fleet.backends().iter().all(settled)
    }

    /// Returns the input and output tokens of all requests, from `/metrics`.
    pub async fn tokens(&self) -> (f64, f64) {
        let page = send(self.admin, get("/metrics")).await.body;
        let sum = |kind: &str| {
            let of = |line: &&str| {
                line.starts_with("gen_ai_client_token_usage_sum{") && line.contains(kind)
            };
            let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
            page.lines().filter(of).map(value).sum()
        };
        (sum("\"input\""), sum("\"output\""))
    }

    /// Waits until every counter is zero.
    pub async fn settles(&self) {
        until("every counter back at zero", || self.is_settled()).await;
    }

    /// Returns the bytes held of request bodies.
    pub fn body_bytes(&self) -> usize {
        self.running.proxy.bodies.held()
    }

    /// Adds a backend through the admin address.
    pub async fn add(&self, body: &str) -> Answer {
        send(self.admin, post("/v1/backends", body.to_owned())).await
    }

    /// Removes a backend through the admin address.
    pub async fn remove(&self, name: &str) -> Answer {
        let request = http::Request::delete(format!("/v1/backends/{name}"))
            .header("content-type", "application/json");
        send(self.admin, request.header("host", "test").body(Default::default()).unwrap()).await
    }

    /// Names in `/v1/backends`, in order.
    pub async fn names(&self) -> Vec<String> {
        let fleet = self.admin("/v1/backends").await;
        let mut names: Vec<String> = fleet["backends"]
            .as_array()
            .unwrap()
            .iter()
            .map(|backend| backend["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    /// Waits until `/v1/backends` has these names.
    pub async fn has(&self, names: &[&str]) {
        let waiting = async {
            while self.names().await != names {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(waiting).await;
    }

    /// Number of slots for backends, free ones included.
    pub fn slots(&self) -> usize {
        self.running.proxy.fleet.backends().len()
    }

    /// Returns the number of queued requests.
    pub fn waiting(&self) -> usize {
        self.running.proxy.queue.signal().waiting()
    }
}

/// Returns a chat request.
pub fn chat(stream: bool) -> String {
    chat_with(stream, &"word ".repeat(400), "")
}

/// Returns a chat request with this prompt and further members.
pub fn chat_with(stream: bool, prompt: &str, more: &str) -> String {
    format!(
        "{{\"model\":\"m\",\"stream\":{stream},\"max_tokens\":16{more},\
         \"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}]}}"
    )
}
