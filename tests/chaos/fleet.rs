//! The engines, each behind a tap, and the proxy in front of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tidegate_emulator::{EmulatedEngine, EmulatorConfig, LoadFailurePolicy};
use tidegate_settings::Settings;
use tidegate_sim::Profile;
use tidegate_types::Seconds;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::tap::{Mode, Tap};
use crate::wire;

/// Engines of one model, of which at most one has a fault at any time.
pub struct Fleet {
    pub model: &'static str,
    pub taps: Vec<Tap>,
    engines: Mutex<tidegate_emulator::RunningEmulator>,
}

/// KV lease of the emulated engines: short, so that leases orphaned by a fault end within the test.
const LEASE: Seconds = Seconds(4.0);

impl Fleet {
    /// vLLM engines that hand KV over by NIXL, in either role.
    pub async fn split(policy: LoadFailurePolicy) -> Fleet {
        let config = EmulatorConfig { policy, count: 4, ..EmulatorConfig::default() };
        Fleet::start("split", config).await
    }

    /// Engines without a connector.
    pub async fn whole() -> Fleet {
        let config =
            EmulatorConfig { kind: EmulatedEngine::Plain, count: 3, ..EmulatorConfig::default() };
        Fleet::start("whole", config).await
    }

    async fn start(model: &'static str, config: EmulatorConfig) -> Fleet {
        let config = EmulatorConfig {
            model: model.to_owned(),
            profile: Profile::named("fast").unwrap(),
            lease: LEASE,
            handshake_timeout: Seconds(1.0),
            ..config
        };
        let engines = tidegate_emulator::start(config).await.unwrap();
        let mut taps = Vec::new();
        for address in engines.addresses() {
            taps.push(Tap::start(*address).await);
        }
        Fleet { model, taps, engines: Mutex::new(engines) }
    }

    /// A crash: connections are reset, the port refuses, the KV is gone.
    pub async fn kill(&self, engine: usize) {
        self.taps[engine].set(Mode::Refuse);
        self.engines.lock().await.kill(engine).await;
    }

    pub async fn revive(&self, engine: usize) {
        self.engines.lock().await.revive(engine).await.unwrap();
        self.taps[engine].set(Mode::Pass);
    }

    pub fn cuts(&self) -> u64 {
        self.taps.iter().map(Tap::cuts).sum()
    }

    /// Returns the number of sequences that the engines run or queue.
    pub async fn running(&self) -> u64 {
        let engines = self.engines.lock().await;
        (0..self.taps.len())
            .map(|engine| {
                let stats = engines.stats(engine);
                stats.running + stats.waiting
            })
            .sum()
    }

    fn backends(&self) -> String {
        let connector = match self.model {
            "split" => "engine = \"vllm\"\nconnector = \"nixl\"\nkv_role = \"kv_both\"\n",
            _ => "engine = \"plain\"\n",
        };
        let backend = |(n, tap): (usize, &Tap)| {
            let (name, address) = (self.name(n), tap.address);
            format!("[[backends]]\nname = \"{name}\"\nurl = \"http://{address}\"\n{connector}")
        };
        self.taps.iter().enumerate().map(backend).collect()
    }

    pub fn name(&self, engine: usize) -> String {
        format!("{}-{engine}", self.model)
    }
}

/// Ports below the ephemeral range, so that an address can be bound again after a fault.
pub async fn listen_low() -> TcpListener {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(127);
    loop {
        let number = begin.wrapping_add(GIVEN.fetch_add(1, Relaxed));
        let port = 20_000 + number % 12_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if let Ok(listener) = TcpListener::bind(address).await {
            return listener;
        }
    }
}

/// The proxy.
pub struct Proxy {
    pub data: SocketAddr,
    pub admin: SocketAddr,
    running: tidegate_proxy::Running,
}

impl Proxy {
    pub async fn start(fleets: &[&Fleet]) -> Proxy {
        let (data, admin) = (listen_low().await, listen_low().await);
        let addresses = [data.local_addr().unwrap(), admin.local_addr().unwrap()];
        drop((data, admin));
        let [data, admin] = addresses;
        // Long deadlines: the machine may be busy, and timing is not under test.
        let mut text = format!(
            "[server]\nlisten = [\"{data}\"]\nthreads = 2\nlinger_seconds = 0\ndrain_seconds = 5\n\
             [admin]\nlisten = \"{admin}\"\n\
             [slo]\nttft_seconds = 20\ntpot_seconds = 1\n\
             [retry]\nattempts = 3\n\
             [probe]\ninterval_seconds = 0.5\ntimeout_seconds = 2\n\
             [planner]\ndwell_seconds = 1\n"
        );
        for fleet in fleets {
            text += &fleet.backends();
        }
        let settings = Settings::parse(&text).unwrap_or_else(|problems| panic!("{problems:?}"));
        let running = tidegate_proxy::spawn(&settings).unwrap();
        let proxy = Proxy { data, admin, running };
        let end = Instant::now() + Duration::from_secs(20);
        while !proxy.serves_models(fleets).await {
            assert!(Instant::now() < end, "the proxy does not serve its models in time");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        proxy
    }

    async fn serves_models(&self, fleets: &[&Fleet]) -> bool {
        let answer = wire::ask(self.data, "GET", "/v1/models", "").await;
        answer.is_ok_and(|answer| fleets.iter().all(|fleet| answer.text().contains(fleet.model)))
    }

    /// Gets a page of the admin port.
    pub async fn page(&self, path: &str) -> String {
        let answer = wire::ask(self.admin, "GET", path, "").await;
        answer.map(|answer| answer.text().into_owned()).unwrap_or_default()
    }

    /// Reloads the configuration, as SIGHUP does.
    pub fn reload(&self) {
        self.running.proxy.reload.notify_one();
    }

    /// Sets a backend's role or pin by the admin API; returns the status.
    pub async fn set_role(&self, backend: &str, change: &str) -> u16 {
        let path = format!("/v1/backends/{backend}/role");
        wire::ask(self.admin, "POST", &path, change).await.map_or(0, |answer| answer.status)
    }
}
