//! Listeners and connections, and engines that can be killed as a crash would.

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tidegate_sim::{Engine, SeqId};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::config::EmulatorConfig;
use crate::handoff::{self, Leases};
use crate::routes;
use crate::scheduler::{self, Command};
use crate::stats::{Counters, Stats};

/// One emulated engine, shared by its connections.
pub struct Emulated {
    /// What is emulated.
    pub config: EmulatorConfig,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its engine id; another one after every start.
    pub id: String,
    /// Prefills that wait to be read.
    pub leases: Leases,
    pub(crate) counters: Arc<Counters>,
    commands: mpsc::UnboundedSender<Command>,
    sequences: AtomicU64,
}

impl Emulated {
    /// The number of a new sequence.
    pub fn next_sequence(&self) -> SeqId {
        SeqId(self.sequences.fetch_add(1, Relaxed) + 1)
    }

    /// Tell the engine; one that was killed hears nothing.
    pub fn tell(&self, command: Command) {
        self.commands.send(command).ok();
    }
}

/// Engines that run.
pub struct Running {
    engines: Vec<One>,
    addresses: Vec<SocketAddr>,
}

struct One {
    engine: Arc<Emulated>,
    kill: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Start a fleet.
///
/// # Errors
/// A port that is taken.
pub async fn start(config: EmulatorConfig) -> io::Result<Running> {
    let mut running = Running { engines: Vec::new(), addresses: Vec::new() };
    for i in 0..config.count {
        let mut address = config.listen;
        if address.port() != 0 {
            address.set_port(address.port() + i);
        }
        let listener = TcpListener::bind(address).await?;
        let one = start_one(config.clone(), listener)?;
        running.addresses.push(one.engine.address);
        running.engines.push(one);
    }
    Ok(running)
}

fn start_one(config: EmulatorConfig, listener: TcpListener) -> io::Result<One> {
    let address = listener.local_addr()?;
    let (commands, inbox) = mpsc::unbounded_channel();
    let random = (fastrand::u64(..), fastrand::u64(..));
    let engine = Arc::new(Emulated {
        address,
        id: format!("{:016x}-{:016x}", random.0, random.1),
        leases: Leases::default(),
        counters: Arc::default(),
        commands,
        sequences: AtomicU64::new(0),
        config,
    });
    let model = Engine::new(engine.config.profile);
    let (kill, killed) = watch::channel(false);
    let tasks = vec![
        tokio::spawn(scheduler::run(model, inbox, Arc::clone(&engine.counters))),
        tokio::spawn(handoff::expire(Arc::clone(&engine))),
        tokio::spawn(accept(listener, Arc::clone(&engine), killed)),
    ];
    Ok(One { engine, kill, tasks })
}

async fn accept(listener: TcpListener, engine: Arc<Emulated>, killed: watch::Receiver<bool>) {
    loop {
        // Out of file descriptors, say: the next client may have more luck.
        let Ok((stream, _)) = listener.accept().await else { continue };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let (engine, mut killed) = (Arc::clone(&engine), killed.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| routes::answer(Arc::clone(&engine), request));
            let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A client that leaves in the middle is no news.
                ended = serving => drop(ended),
                _ = killed.changed() => {}
            }
        });
    }
}

impl Running {
    /// Where the engines listen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// An engine's counters.
    pub fn stats(&self, engine: usize) -> Stats {
        self.engines[engine].engine.counters.snapshot()
    }

    /// End an engine as a crash would: its connections are cut and its port is closed.
    pub async fn kill(&mut self, engine: usize) {
        self.engines[engine].kill().await;
    }

    /// End all engines.
    pub async fn stop(mut self) {
        for engine in &mut self.engines {
            engine.kill().await;
        }
    }
}

impl One {
    async fn kill(&mut self) {
        // Nobody listens if no connection is open.
        self.kill.send(true).ok();
        for task in self.tasks.drain(..) {
            task.abort();
            // It was aborted, or had ended: both are what is wanted.
            task.await.ok();
        }
    }
}
