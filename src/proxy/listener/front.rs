//! Accepts connections on a port: a pingora service with its own accept loop. Closing the listener
//! leaves open connections running; accept errors are reported and the loop continues.

use async_trait::async_trait;
use pingora_core::server::{ListenFds, ShutdownWatch};
use pingora_core::services::Service;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::listener::client_socket::ClientSocket;
use crate::listener::sockets::BoundListener;
use crate::runtime::connections::{ConnectionLimit, Connections};
use crate::runtime::liveness::LivenessGuard;
use crate::tls::{ServerTls, subject_of};

/// Longest TLS handshake of a client; a slower connection is closed.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after an accept error that would recur at once (no file descriptor is left), so that the
/// loop does not spin.
const PAUSE: Duration = Duration::from_millis(20);

/// Answer to a connection above a limit.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\
    connection: close\r\n\r\n";

/// The client of a connection.
#[derive(Clone, Debug)]
pub struct ConnectedClient {
    pub address: IpAddr,
    /// Subject of the verified client certificate.
    pub subject: Option<Arc<str>>,
}

/// What a port serves.
pub trait App: Send + Sync + 'static {
    /// Serves one connection to its end. Once `stop` is true, it ends after the current request.
    fn serve(
        self: Arc<Self>,
        io: ClientSocket,
        client: ConnectedClient,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send;

    /// A connection above a limit was refused.
    fn refused(&self, _: ConnectionLimit) {}
}

/// Waits until a switch is true or its sender was dropped.
pub async fn is_on(switch: &mut watch::Receiver<bool>) {
    switch.wait_for(|on| *on).await.ok();
}

/// Switches that start and stop a port.
#[derive(Clone, Debug)]
pub struct PortPhases {
    /// True: accept. A successor waits until it is ready.
    pub begin: watch::Receiver<bool>,
    /// True: the listeners close.
    pub close: watch::Receiver<bool>,
    /// True: connections end, idle ones at once.
    pub stop: watch::Receiver<bool>,
}

/// One port as a pingora service.
pub struct PortService<A> {
    /// Name of the service's threads.
    pub name: &'static str,
    /// Application that serves the port's connections.
    pub app: Arc<A>,
    pub listeners: Vec<BoundListener>,
    /// TLS configuration, if any.
    pub tls: Option<ServerTls>,
    pub phases: PortPhases,
    /// Number of threads; pingora's setting if `None`.
    pub threads: Option<usize>,
    /// Ends the process if the service ends early.
    pub guard: Option<LivenessGuard>,
    /// Limits on the port's connections.
    pub limits: Arc<Connections>,
}

#[async_trait]
impl<A: App> Service for PortService<A> {
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        let _guard = self.guard.take();
        let mut accepting = JoinSet::new();
        for BoundListener { name, listener } in self.listeners.drain(..) {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    let port = Port {
                        app: Arc::clone(&self.app),
                        tls: self.tls.clone(),
                        phases: self.phases.clone(),
                        address: name,
                        limits: Arc::clone(&self.limits),
                        refusing: Arc::default(),
                    };
                    accepting.spawn(port.accept_all(listener));
                }
                Err(error) => {
                    tracing::error!(address = %name, "port cannot accept connections: {error}");
                    return;
                }
            }
        }
        while let Some(ended) = accepting.join_next().await {
            if let Err(error) = ended {
                tracing::error!(service = self.name, "the accept loop ended: {error}");
                return;
            }
        }
    }

    fn name(&self) -> &str {
        self.name
    }

    fn threads(&self) -> Option<usize> {
        self.threads
    }
}

/// One listener with its accept loop.
struct Port<A> {
    app: Arc<A>,
    tls: Option<ServerTls>,
    phases: PortPhases,
    address: String,
    limits: Arc<Connections>,
    /// Set by the first refusal after an admitted connection, so that a series logs one line.
    refusing: Arc<AtomicBool>,
}

impl<A: App> Port<A> {
    async fn accept_all(mut self, listener: TcpListener) {
        // The sender is dropped only at the end of the process.
        is_on(&mut self.phases.begin).await;
        let mut close = self.phases.close.clone();
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = is_on(&mut close) => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, address)) => {
                    failing = false;
                    self.take(socket, address);
                }
                Err(error) => {
                    // One line for a series of errors.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(address = %self.address, "connections cannot be accepted: {error}");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        // Connections in the kernel's accept queue would be reset when the listener closes. A
        // successor that shares the listener may accept some of them.
        while let Ok(Ok((socket, address))) =
            tokio::time::timeout(Duration::ZERO, listener.accept()).await
        {
            self.take(socket, address);
        }
    }

    fn take(&self, socket: TcpStream, address: SocketAddr) {
        let (app, tls) = (Arc::clone(&self.app), self.tls.clone());
        let connection = match self.limits.admit(address) {
            Ok(connection) => connection,
            Err(refused) => return self.refuse(socket, address, refused),
        };
        self.refusing.store(false, Relaxed);
        let stop = self.phases.stop.clone();
        tokio::spawn(async move {
            // Nagle's algorithm would delay the last bytes of a chunk by 40 ms (delayed ACK).
            socket.set_nodelay(true).ok();
            let served = match tls {
                None => Some((ClientSocket::Tcp(socket), None)),
                // Boxed: unboxed, it would enlarge every connection's future.
                Some(tls) => Box::pin(handshake(tls, socket, address, stop.clone())).await,
            };
            if let Some((io, subject)) = served {
                app.serve(io, ConnectedClient { address: address.ip(), subject }, stop).await;
            }
            drop(connection);
        });
    }

    /// Refuses a connection above a limit: sends the answer if it fits the send buffer, then
    /// closes.
    fn refuse(&self, socket: TcpStream, client: SocketAddr, refused: ConnectionLimit) {
        let limit = refused.as_str();
        // One line for a series of refusals.
        if !self.refusing.swap(true, Relaxed) {
            tracing::warn!(address = %self.address, %client, limit, "connections are refused");
        }
        self.app.refused(refused);
        if self.tls.is_none() {
            // A new connection has an empty send buffer; the write fails only if the client has
            // left.
            socket.try_write(FULL).ok();
        }
    }
}

async fn handshake(
    tls: ServerTls,
    socket: TcpStream,
    address: SocketAddr,
    mut stop: watch::Receiver<bool>,
) -> Option<(ClientSocket, Option<Arc<str>>)> {
    let shaking = tokio::time::timeout(HANDSHAKE, tls.accept(socket));
    let shaken: io::Result<_> = tokio::select! {
        shaken = shaking => shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        () = is_on(&mut stop) => return None,
    };
    match shaken {
        Ok(stream) => {
            let subject = subject_of(stream.get_ref().1.peer_certificates());
            Some((ClientSocket::Tls(Box::new(stream)), subject))
        }
        Err(error) => {
            tracing::info!(client = %address, "TLS handshake of a client failed: {error}");
            None
        }
    }
}
