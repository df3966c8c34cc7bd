//! How the proxy stops. pingora would stop accepting at once and cut streams after a fixed sleep;
//! an operator wants: not ready at once, new connections still served while endpoints are removed,
//! streams finished up to a deadline, then the end.

use async_trait::async_trait;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tidegate_terms::Seconds;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::service::Proxy;

/// How often the drain looks whether the last request has settled.
const DRAIN_LOOK: Seconds = Seconds(0.02);

/// How long each step may take.
#[derive(Clone, Copy, Debug)]
pub struct DrainParams {
    /// Keep accepting after the signal, while load balancers take this proxy out.
    pub linger: Seconds,
    /// Then let requests finish.
    pub drain: Seconds,
}

/// Waits for the end and drains before it lets pingora stop.
pub struct Drain {
    /// Whose requests.
    pub proxy: Arc<Proxy>,
    /// How long.
    pub params: DrainParams,
    /// Stops the proxy without a signal: for programs that run it inside.
    pub stop: Arc<Notify>,
    /// Listen to the process's signals?
    pub signals: bool,
}

enum Cause {
    Terminate,
    Upgrade,
    Asked,
}

#[async_trait]
impl ShutdownSignalWatch for Drain {
    async fn recv(&self) -> ShutdownSignal {
        let linger = match self.cause().await {
            // The new process has the sockets: pingora waits for this one's requests.
            Cause::Upgrade => {
                self.proxy.draining.store(true, Relaxed);
                return ShutdownSignal::GracefulUpgrade;
            }
            Cause::Terminate => self.params.linger,
            Cause::Asked => Seconds::ZERO,
        };
        tracing::info!("stopping: not ready from now on");
        self.proxy.draining.store(true, Relaxed);
        tokio::time::sleep(linger.to_duration()).await;
        let clock = self.proxy.clock;
        let deadline = clock.now() + self.params.drain;
        while !self.proxy.fleet.registry.is_empty() && clock.now() < deadline {
            tokio::time::sleep(DRAIN_LOOK.to_duration()).await;
        }
        let left = self.proxy.fleet.registry.len();
        tracing::info!(left, "stopping: drained");
        // Nothing is in flight any more, or out of time: pingora need not wait again.
        ShutdownSignal::FastShutdown
    }
}

impl Drain {
    async fn cause(&self) -> Cause {
        if !self.signals {
            self.stop.notified().await;
            return Cause::Asked;
        }
        let streams = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let [term, int, quit] = streams.map(signal);
        let (Ok(mut term), Ok(mut int), Ok(mut quit)) = (term, int, quit) else {
            tracing::error!("cannot listen to signals: only a kill will stop this process");
            std::future::pending::<()>().await;
            return Cause::Asked;
        };
        tokio::select! {
            _ = term.recv() => Cause::Terminate,
            _ = int.recv() => Cause::Asked,
            _ = quit.recv() => Cause::Upgrade,
            () = self.stop.notified() => Cause::Asked,
        }
    }
}
