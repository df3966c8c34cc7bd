//! Listeners and connections, and engines that can be killed as a crash would and started again.

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tidegate_sim::Engine;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use crate::config::EmulatorConfig;
use crate::engine::Shared;
use crate::lease;
use crate::routes;
use crate::scheduler::Scheduler;
use crate::stats::Stats;
use crate::store::Store;

/// Engines that run. Dropped, it ends them too, but does not wait for it.
pub struct Running {
    engines: Vec<One>,
    addresses: Vec<SocketAddr>,
}

/// One engine, alive or killed; its counters outlive it.
struct One {
    engine: Arc<Shared>,
    alive: Option<Alive>,
}

/// What runs for an engine.
struct Alive {
    /// Its drop ends the listener and every connection.
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

/// Start a fleet on the current tokio runtime.
///
/// # Errors
/// A port that is taken, or beyond 65535.
pub async fn start(config: EmulatorConfig) -> io::Result<Running> {
    let mut running = Running { engines: Vec::new(), addresses: Vec::new() };
    let store = Arc::default();
    for i in 0..config.count {
        let mut address = config.listen;
        if address.port() != 0 {
            let port = address.port().checked_add(i);
            address.set_port(port.ok_or_else(|| io::Error::other("no port is left"))?);
        }
        let one = One::start(config.clone(), address, Arc::clone(&store)).await?;
        running.addresses.push(one.engine.address);
        running.engines.push(one);
    }
    Ok(running)
}

impl Running {
    /// Where the engines listen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// An engine's id: what `remote_engine_id` names.
    ///
    /// # Panics
    /// If there is no such engine; so do all that take an index.
    pub fn engine_id(&self, engine: usize) -> &str {
        &self.engines[engine].engine.id
    }

    /// An engine's counters since its start; those of a killed one stand still.
    pub fn stats(&self, engine: usize) -> Stats {
        let engine = &self.engines[engine].engine;
        engine.counters.snapshot(engine.leases.count())
    }

    /// End an engine as a crash would: its connections are cut and its port is closed.
    pub async fn kill(&mut self, engine: usize) {
        self.engines[engine].kill().await;
    }

    /// Start a killed engine again at its address: with another engine id, and nothing of what it
    /// held or counted.
    ///
    /// # Errors
    /// Its port is taken meanwhile.
    pub async fn revive(&mut self, engine: usize) -> io::Result<()> {
        let one = &mut self.engines[engine];
        one.kill().await;
        let store = Arc::clone(&one.engine.store);
        *one = One::start(one.engine.config.clone(), one.engine.address, store).await?;
        Ok(())
    }

    /// End all engines.
    pub async fn stop(mut self) {
        for engine in &mut self.engines {
            engine.kill().await;
        }
    }
}

impl One {
    async fn start(
        config: EmulatorConfig,
        address: SocketAddr,
        store: Arc<Store>,
    ) -> io::Result<One> {
        let listener = TcpListener::bind(address).await?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let engine = Arc::new(Shared::new(config, listener.local_addr()?, commands, store));
        let model = Engine::new(engine.config.profile);
        let scheduler = Scheduler::new(model, inbox, Arc::clone(&engine.counters));
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(serve(listener, Arc::clone(&engine), scheduler, stopped));
        Ok(One { engine, alive: Some(Alive { stop, server }) })
    }

    async fn kill(&mut self) {
        if let Some(Alive { stop, server }) = self.alive.take() {
            drop(stop);
            // It ends by itself now.
            server.await.ok();
        }
    }
}

/// Accept and serve until `stopped`; then cut everything.
async fn serve(
    listener: TcpListener,
    engine: Arc<Shared>,
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
                // Out of file descriptors, say: a pause lets some come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            // A connection has ended; what it has to say went to its client.
            Some(_) = tasks.join_next() => {}
        }
    }
    drop(listener);
    engine.kill();
    tasks.shutdown().await;
}

async fn connection(stream: TcpStream, engine: Arc<Shared>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let keep_alive = engine.config.keep_alive.to_duration();
    let service = service_fn(move |request| routes::answer(Arc::clone(&engine), request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        // It runs from the end of one request, so it also ends idle connections.
        .header_read_timeout(keep_alive)
        .serve_connection(TokioIo::new(stream), service);
    // A client that leaves in the middle is no news.
    serving.await.ok();
}
