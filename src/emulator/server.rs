//! Listeners and connections of engines, which can be killed as by a crash and restarted.

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tidegate_sim::{Bursts, Engine};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::config::EmulatorConfig;
use crate::engine::EmulatedState;
use crate::lease;
use crate::routes;
use crate::scheduler::Scheduler;
use crate::shared_kv_store::SharedKvStore;
use crate::stats::Stats;

/// A running fleet. Dropping it stops the engines without waiting for their end.
pub struct RunningEmulator {
    engines: Vec<EmulatorSlot>,
    addresses: Vec<SocketAddr>,
}

/// One engine, running or killed; its counters remain.
struct EmulatorSlot {
    engine: Arc<EmulatedState>,
    alive: Option<EngineTasks>,
}

/// Tasks of a running engine.
struct EngineTasks {
    /// Dropping it ends the listener and every connection.
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

/// Starts a fleet on the current tokio runtime.
///
/// # Errors
/// A port is in use, or beyond 65535.
pub async fn start(config: EmulatorConfig) -> io::Result<RunningEmulator> {
    let mut running = RunningEmulator { engines: Vec::new(), addresses: Vec::new() };
    let store = Arc::default();
    for i in 0..config.count {
        let mut address = config.listen;
        if address.port() != 0 {
            let port = address.port().checked_add(i);
            address
                .set_port(port.ok_or_else(|| io::Error::other("the port number exceeds 65535"))?);
        }
        let one = EmulatorSlot::start(config.clone(), address, Arc::clone(&store)).await?;
        running.addresses.push(one.engine.address);
        running.engines.push(one);
    }
    Ok(running)
}

impl RunningEmulator {
    /// Returns the addresses on which the engines listen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns an engine's id, as in `remote_engine_id`.
    ///
    /// # Panics
    /// If there is no engine with this index, as for all methods that take one.
    pub fn engine_id(&self, engine: usize) -> &str {
        &self.engines[engine].engine.id
    }

    /// Returns an engine's counters since its start; those of a killed engine no longer change.
    pub fn stats(&self, engine: usize) -> Stats {
        let engine = &self.engines[engine].engine;
        engine.counters.snapshot(engine.leases.count())
    }

    /// Kills an engine as a crash would: its connections are cut and its port is closed.
    pub async fn kill(&mut self, engine: usize) {
        self.engines[engine].kill().await;
    }

    /// Restarts a killed engine at its address, with a new engine id and without its KV and
    /// counters.
    ///
    /// # Errors
    /// Its port is in use.
    pub async fn revive(&mut self, engine: usize) -> io::Result<()> {
        let one = &mut self.engines[engine];
        one.kill().await;
        let store = Arc::clone(&one.engine.store);
        *one = EmulatorSlot::start(one.engine.config.clone(), one.engine.address, store).await?;
        Ok(())
    }

    /// Stops all engines.
    pub async fn stop(mut self) {
        for engine in &mut self.engines {
            engine.kill().await;
        }
    }
}

impl EmulatorSlot {
    async fn start(
        config: EmulatorConfig,
        address: SocketAddr,
        store: Arc<SharedKvStore>,
    ) -> io::Result<EmulatorSlot> {
        let listener = TcpListener::bind(address).await?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let engine = Arc::new(EmulatedState::new(config, listener.local_addr()?, commands, store));
        let seed = u64::from(engine.address.port());
        let model = Engine::new(engine.config.profile)
            .with_preemption()
            .with_bursts(Bursts::new(engine.config.bursts, seed));
        let scheduler = Scheduler::new(model, inbox, Arc::clone(&engine.counters));
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(serve(listener, Arc::clone(&engine), scheduler, stopped));
        Ok(EmulatorSlot { engine, alive: Some(EngineTasks { stop, server }) })
    }

    async fn kill(&mut self) {
        if let Some(EngineTasks { stop, server }) = self.alive.take() {
            drop(stop);
            // The task ends by itself.
            server.await.ok();
        }
    }
}

/// Accepts and serves until `stopped`, then cuts all connections.
async fn serve(
    listener: TcpListener,
    engine: Arc<EmulatedState>,
    scheduler: Scheduler,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut tasks = JoinSet::new();
    tasks.spawn(scheduler.run());
    tasks.spawn(lease::expire(Arc::clone(&engine)));
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tasks.spawn(connection(stream, Arc::clone(&engine)));
                }
                // File descriptors may be exhausted; after a pause some may be free.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            // A connection has ended; its errors were answered to its client.
            Some(_) = tasks.join_next() => {}
        }
    }
    drop(listener);
    engine.kill();
    tasks.shutdown().await;
}

async fn connection(stream: TcpStream, engine: Arc<EmulatedState>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let keep_alive = engine.config.keep_alive.to_duration();
    let service = service_fn(move |request| routes::answer(Arc::clone(&engine), request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        // The timeout runs from the end of one request, so it also closes idle connections.
        .header_read_timeout(keep_alive)
        .serve_connection(TokioIo::new(stream), service);
    // Errors of disconnected clients are ignored.
    serving.await.ok();
}
