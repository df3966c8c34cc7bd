//! Graceful shutdown. pingora would stop accepting at once and cut streams after a fixed sleep.
//! pingora would stop accepting at once and cut streams after a fixed sleep. Here the proxy turns
//! unready at once and still serves new connections while load balancers remove it (linger). Then
//! it closes its listeners and lets in-flight requests finish up to a deadline (drain). If a
//! successor takes over the listeners (handover.rs), the proxy stays ready and drains in the same
//! way.

use async_trait::async_trait;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidegate_settings::ServerSettings;
use tidegate_types::Seconds;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::dispatch::context::Proxy;
use crate::listener::front::PortPhases;
use crate::listener::sockets::BoundListener;
use crate::process::handover::{self, Predecessor};
use crate::runtime::liveness::Liveness;

/// Interval of the check whether the last request has settled.
const DRAIN_POLL: Seconds = Seconds(0.02);
/// Longest time from sending the listeners to the successor's report that it serves, in which the
/// successor reads the facts of its engines.
const HAND_OVER_MAX: Duration = Duration::from_secs(60);
/// Longest time that a successor waits for a usable engine before it takes over.
const READY_MAX: Seconds = Seconds(30.0);

/// Watch channels that control the phases of both ports.
#[derive(Debug)]
pub struct Switches {
    begin: watch::Sender<bool>,
    close_data: watch::Sender<bool>,
    close_admin: watch::Sender<bool>,
    stop_data: watch::Sender<bool>,
    stop_admin: watch::Sender<bool>,
}

impl Switches {
    /// Nothing is closed or stopped. `begun`: whether the ports accept from the start.
    pub fn new(begun: bool) -> Switches {
        let off = || watch::channel(false).0;
        let begin = watch::channel(begun).0;
        Switches {
            begin,
            close_data: off(),
            close_admin: off(),
            stop_data: off(),
            stop_admin: off(),
        }
    }

    /// Phases of the data port.
    pub fn data(&self) -> PortPhases {
        self.phases(&self.close_data, &self.stop_data)
    }

    /// Phases of the admin port, which answers until the end, or until a successor answers.
    pub fn admin(&self) -> PortPhases {
        self.phases(&self.close_admin, &self.stop_admin)
    }

    fn phases(&self, close: &watch::Sender<bool>, stop: &watch::Sender<bool>) -> PortPhases {
        let begin = self.begin.subscribe();
        PortPhases { begin, close: close.subscribe(), stop: stop.subscribe() }
    }
}

/// Waits for a stop signal, and drains before pingora stops.
pub struct Drain {
    /// The proxy whose requests are drained.
    pub proxy: Arc<Proxy>,
    /// Stops the proxy without a signal, for programs that contain it.
    pub stop: Arc<Notify>,
    /// Whether signals of the process are handled.
    pub signals: bool,
    /// Socket at which a successor receives the listeners.
    pub upgrade_socket: Option<PathBuf>,
    /// Handles of the listeners for a successor.
    pub listeners: Mutex<Vec<BoundListener>>,
    /// The process that handed its listeners to this one and waits until they are served.
    pub predecessor: Mutex<Option<Predecessor>>,
    /// Control of both ports' phases.
    pub switches: Switches,
    /// Liveness of the essential tasks.
    pub liveness: Arc<Liveness>,
}

enum StopCause {
    Terminate,
    Upgrade,
    Requested,
    TaskFailed,
}

#[async_trait]
impl ShutdownSignalWatch for Drain {
    async fn recv(&self) -> ShutdownSignal {
        let cause = self.cause().await;
        self.liveness.stop();
        let settings = self.proxy.settings.load_full();
        let ServerSettings { linger, drain, .. } = settings.values.server;
        match cause {
            StopCause::TaskFailed => {
                let failed_task = self.liveness.failed_task();
                tracing::error!(failed_task, "stopping: an essential task panicked");
                return ShutdownSignal::FastShutdown;
            }
            StopCause::Terminate => {
                tracing::info!("stopping: readiness is withdrawn");
                self.proxy.draining.store(true, Relaxed);
                tokio::time::sleep(linger.to_duration()).await;
                self.close_data();
            }
            StopCause::Upgrade => {
                // The successor answers on the same address, so readiness must not change.
                self.proxy.has_successor.store(true, Relaxed);
                self.close_data();
                self.switches.close_admin.send_replace(true);
                // Idle connections stay open: clients may be about to send. `connection: close` in
                // the answer makes them reconnect to the successor.
                self.proxy.draining.store(true, Relaxed);
                self.closed(linger).await;
                self.switches.stop_admin.send_replace(true);
            }
            StopCause::Requested => {
                self.proxy.draining.store(true, Relaxed);
                self.close_data();
            }
        }
        self.switches.stop_data.send_replace(true);
        self.closed(drain).await;
        let left = self.proxy.connections.open();
        tracing::info!(left, "stopping: drained");
        #[cfg(feature = "otlp")]
        if let Some(spans) = &self.proxy.spans {
            spans.close().await;
        }
        // All requests have ended or the drain time has passed: pingora stops without a second
        // wait.
        ShutdownSignal::FastShutdown
    }
}

impl Drain {
    /// Closes the listeners. A socket listens until its last handle is closed.
    fn close_data(&self) {
        self.handles().clear();
        self.switches.close_data.send_replace(true);
    }

    fn handles(&self) -> MutexGuard<'_, Vec<BoundListener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no client is connected and no request in flight, at most for `most`.
    async fn closed(&self, most: Seconds) {
        let clock = self.proxy.clock;
        let deadline = clock.now() + most;
        let busy = || self.proxy.connections.open() > 0 || !self.proxy.fleet.registry.is_empty();
        while busy() && clock.now() < deadline {
            tokio::time::sleep(DRAIN_POLL.to_duration()).await;
        }
    }

    async fn cause(&self) -> StopCause {
        let mut signals = match self.signals {
            true => SignalStreams::listen(),
            false => None,
        };
        if self.signals && signals.is_none() {
            tracing::error!("cannot install signal handlers: only SIGKILL stops this process");
        }
        let predecessor = self.predecessor.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut taking = std::pin::pin!(self.take_over(predecessor));
        let mut has_taken = false;
        loop {
            let quit = tokio::select! {
                () = self.stop.notified() => return StopCause::Requested,
                () = self.liveness.failed() => return StopCause::TaskFailed,
                () = taking.as_mut(), if !has_taken => { has_taken = true; false }
                word = next(&mut signals) => match word {
                    ProcessSignal::Terminate => return StopCause::Terminate,
                    ProcessSignal::Interrupt => return StopCause::Requested,
                    ProcessSignal::Hangup => { self.proxy.reload.notify_one(); false }
                    ProcessSignal::Quit => true,
                },
            };
            if !quit {
                continue;
            }
            // Requests are served during a hand-over; a stop signal has precedence.
            let handing = self.hand_over();
            tokio::select! {
                done = handing => if done { return StopCause::Upgrade },
                () = self.stop.notified() => return StopCause::Requested,
                () = self.liveness.failed() => return StopCause::TaskFailed,
                cause = next_stop(&mut signals, &self.proxy) => return cause,
            }
        }
    }

    /// Starts accepting once an engine is usable, and releases the predecessor.
    async fn take_over(&self, predecessor: Option<Predecessor>) {
        let Some(predecessor) = predecessor else { return };
        let clock = self.proxy.clock;
        let deadline = clock.now() + READY_MAX;
        while let Err(why) = self.proxy.readiness() {
            if clock.now() >= deadline {
                tracing::warn!(
                    "upgrade: taking over although requests cannot be served yet: {why}"
                );
                break;
            }
            tokio::time::sleep(DRAIN_POLL.to_duration()).await;
        }
        self.switches.begin.send_replace(true);
        match predecessor.release() {
            Ok(()) => tracing::info!("upgrade: listeners taken over"),
            Err(error) => tracing::error!("upgrade: the previous process has ended: {error}"),
        }
    }

    /// Hands the listeners to a waiting successor. Returns false if nothing has changed.
    async fn hand_over(&self) -> bool {
        let Some(path) = &self.upgrade_socket else {
            tracing::error!("SIGQUIT is ignored: server.upgrade_socket is not set");
            return false;
        };
        let sent = handover::send(path, &self.handles());
        let stream = match sent {
            Ok(stream) => stream,
            Err(error) => {
                tracing::error!(
                    "SIGQUIT is ignored: no `tidegate serve --upgrade` waits at {}: {error}",
                    path.display()
                );
                return false;
            }
        };
        let served = tokio::time::timeout(HAND_OVER_MAX, handover::is_served(stream)).await;
        match served {
            Ok(Ok(true)) => {
                tracing::info!("stopping: a new process serves from now on");
                true
            }
            Ok(Ok(false) | Err(_)) => {
                tracing::error!(
                    "SIGQUIT: the new process ended before it served, this one continues"
                );
                false
            }
            Err(_) => {
                tracing::error!(
                    "SIGQUIT: the new process does not serve after 60 s, this one continues"
                );
                false
            }
        }
    }
}

enum ProcessSignal {
    Terminate,
    Interrupt,
    Quit,
    Hangup,
}

struct SignalStreams {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
}

impl SignalStreams {
    fn listen() -> Option<SignalStreams> {
        Some(SignalStreams {
            terminate: signal(SignalKind::terminate()).ok()?,
            interrupt: signal(SignalKind::interrupt()).ok()?,
            quit: signal(SignalKind::quit()).ok()?,
            hangup: signal(SignalKind::hangup()).ok()?,
        })
    }
}

/// Returns the next signal; pending for ever without signal handlers.
async fn next(signals: &mut Option<SignalStreams>) -> ProcessSignal {
    let Some(signals) = signals else { return std::future::pending().await };
    tokio::select! {
        _ = signals.terminate.recv() => ProcessSignal::Terminate,
        _ = signals.interrupt.recv() => ProcessSignal::Interrupt,
        _ = signals.quit.recv() => ProcessSignal::Quit,
        _ = signals.hangup.recv() => ProcessSignal::Hangup,
    }
}

/// The next signal that ends the process.
async fn next_stop(signals: &mut Option<SignalStreams>, proxy: &Proxy) -> StopCause {
    loop {
        match next(signals).await {
            ProcessSignal::Terminate => return StopCause::Terminate,
            ProcessSignal::Interrupt => return StopCause::Requested,
            ProcessSignal::Hangup => proxy.reload.notify_one(),
            ProcessSignal::Quit => {
                tracing::error!("SIGQUIT is ignored: the listeners are being handed over")
            }
        }
    }
}

/// Ignores SIGHUP and SIGQUIT until the proxy runs, so that they do not end the process.
pub fn ignore_early_signals() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Ok(runtime) = runtime {
        let _inside = runtime.enter();
        // The handlers stay installed after the streams are dropped.
        drop([signal(SignalKind::hangup()), signal(SignalKind::quit())]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_before_the_stop_ends_the_process() {
        let liveness = Arc::new(Liveness::default());
        let (port, control) = (liveness.guard("the data port"), liveness.guard("the control loop"));
        assert_eq!(liveness.failed_task(), None);
        let ended = tokio::spawn(async move {
            let _guard = port;
            panic!("simulated bug");
        });
        assert!(ended.await.is_err());
        liveness.failed().await;
        assert_eq!(liveness.failed_task(), Some("the data port"));
        drop(control);
        let stopping = Arc::new(Liveness::default());
        stopping.stop();
        drop(stopping.guard("the admin port"));
        assert_eq!(stopping.failed_task(), None, "tasks may end once the proxy stops");
    }
}
