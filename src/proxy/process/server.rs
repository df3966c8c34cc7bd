//! The process: pingora's server with the data port, the admin port and the background tasks as
//! services.

use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::background::background_service;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tidegate_settings::Settings;
use tokio::sync::{Notify, Semaphore};

use crate::dispatch::context::Proxy;
use crate::listener::downstream::DataApp;
use crate::listener::front::PortService;
use crate::listener::sockets::{Addresses, ListenError, Sockets, is_taken};
use crate::process::admin::what_if::{Simulator, WhatIf};
use crate::process::admin::{self, AdminApp};
use crate::process::gateways::{self, LoadServer};
use crate::process::handover::{self, ReceivedListeners};
use crate::process::shutdown::{Drain, Switches, ignore_early_signals};
use crate::process::start::{BuiltProxy, build};
use crate::process::start_error::StartError;
use crate::runtime::connections::Connections;
use crate::runtime::liveness::Liveness;

/// Runs a proxy until the process is asked to stop. `listening` is called with the addresses once
/// it listens. `simulator` answers `/v1/what-if`.
///
/// # Errors
/// [`StartError`] before anything listens, or when an essential task of the proxy has panicked.
pub fn run(
    settings: &Settings,
    listeners: Listeners,
    simulator: Option<Simulator>,
    listening: impl FnOnce(&Addresses),
) -> Result<(), StartError> {
    ignore_early_signals();
    let (server, drain, addresses) = assemble(settings, true, listeners, simulator)?;
    let liveness = Arc::clone(&drain.liveness);
    listening(&addresses);
    server.run(RunArgs { shutdown_signal: Box::new(drain) });
    match liveness.failed_task() {
        None => Ok(()),
        Some(part) => Err(StartError::Died(part)),
    }
}

/// Source of the listening sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listeners {
    /// Opened by this process.
    Own,
    /// Received from a running proxy over `server.upgrade_socket` after it gets SIGQUIT.
    Inherited,
}

/// A proxy inside another program, for the demo and tests.
pub struct Running {
    /// State shared by its requests.
    pub proxy: Arc<Proxy>,
    /// Addresses it listens on.
    pub addresses: Addresses,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

/// Runs a proxy on a new thread. Its sockets are open when this returns.
///
/// # Errors
/// [`StartError`] before anything listens.
pub fn spawn(settings: &Settings) -> Result<Running, StartError> {
    spawn_with(settings, None)
}

/// Runs a proxy as [`spawn`] does, with a simulator for `/v1/what-if`.
///
/// # Errors
/// [`StartError`] before anything listens.
pub fn spawn_with(
    settings: &Settings,
    simulator: Option<Simulator>,
) -> Result<Running, StartError> {
    let (server, drain, addresses) = assemble(settings, false, Listeners::Own, simulator)?;
    let (proxy, stop) = (Arc::clone(&drain.proxy), Arc::clone(&drain.stop));
    let run = move || server.run(RunArgs { shutdown_signal: Box::new(drain) });
    let thread = std::thread::Builder::new().name("tidegate".into()).spawn(run);
    let thread =
        thread.map_err(|source| ListenError { address: "a new thread".to_owned(), source })?;
    Ok(Running { proxy, addresses, stop, thread: Some(thread) })
}

impl Running {
    /// Stops the proxy. In-flight requests may finish within the drain time.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the proxy's thread panicked");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn assemble(
    settings: &Settings,
    signals: bool,
    listeners: Listeners,
    simulator: Option<Simulator>,
) -> Result<(Server, Drain, Addresses), StartError> {
    let liveness = Arc::new(Liveness::default());
    // Opened before the engines' facts are read, which takes seconds.
    let own = match listeners {
        Listeners::Own => Some(Sockets::open(settings, Vec::new())?),
        Listeners::Inherited => {
            has_predecessor(settings)?;
            None
        }
    };
    let built = build(settings, &liveness)?;
    let (sockets, predecessor) = match own {
        Some(own) => (own, None),
        None => {
            let socket = settings.server.upgrade_socket.as_deref();
            let ReceivedListeners { listeners, predecessor } =
                handover::receive(socket.ok_or(StartError::NoSocket)?)?;
            (Sockets::open(settings, listeners)?, Some(predecessor))
        }
    };
    let addresses = sockets.addresses()?;
    let shared = sockets
        .share()
        .map_err(|source| ListenError { address: "a second handle".to_owned(), source })?;
    let switches = Switches::new(predecessor.is_none());
    let drain = Drain {
        proxy: Arc::clone(&built.proxy),
        stop: Arc::default(),
        signals,
        upgrade_socket: settings.server.upgrade_socket.clone(),
        listeners: Mutex::new(shared),
        predecessor: Mutex::new(predecessor),
        switches,
        liveness,
    };
    let server = server(settings, built, sockets, &drain, WhatIf::new(simulator));
    Ok((server, drain, addresses))
}

/// The pingora services: both ports and the background tasks.
fn server(
    settings: &Settings,
    built: BuiltProxy,
    sockets: Sockets,
    drain: &Drain,
    what_if: WhatIf,
) -> Server {
    let BuiltProxy { proxy, background, commands, fleet_updates, server_tls, admin_tls, .. } =
        built;
    let mut conf = ServerConf::new().unwrap_or_default();
    conf.threads = threads(settings);
    let mut server = Server::new_with_opt_and_conf(Opt::default(), conf);
    server.bootstrap();
    let data = PortService {
        name: "data",
        app: Arc::new(DataApp { proxy: Arc::clone(&proxy) }),
        listeners: sockets.data,
        tls: server_tls,
        phases: drain.switches.data(),
        threads: None,
        guard: Some(drain.liveness.guard("the data port")),
        limits: Arc::clone(&proxy.connections),
    };
    let admin = PortService {
        name: "admin",
        app: Arc::new(AdminApp {
            proxy,
            commands,
            fleet_updates,
            checks: Arc::new(Semaphore::new(1)),
            what_if: Arc::new(what_if),
        }),
        listeners: vec![sockets.admin],
        tls: admin_tls,
        phases: drain.switches.admin(),
        threads: Some(1),
        guard: Some(drain.liveness.guard("the admin port")),
        limits: Connections::new(admin::CONNECTIONS_MAX, 0),
    };
    let mut background = background_service("control", background);
    background.threads = Some(1);
    server.add_service(background);
    server.add_service(data);
    server.add_service(admin);
    if let Some((exchange, bound)) = built.exchange.zip(sockets.gateways) {
        server.add_service(PortService {
            name: "gateways",
            app: Arc::new(LoadServer(exchange)),
            listeners: vec![bound],
            tls: built.gateways_tls,
            phases: drain.switches.admin(),
            threads: Some(1),
            guard: None,
            limits: Connections::new(gateways::CONNECTIONS_MAX, 0),
        });
    }
    server
}

/// Checks the preconditions of `serve --upgrade`: an upgrade socket and a running proxy.
fn has_predecessor(settings: &Settings) -> Result<(), StartError> {
    if settings.server.upgrade_socket.is_none() {
        return Err(StartError::NoSocket);
    }
    // A predecessor cannot be found at port 0.
    let mut fixed = settings.server.listen.iter().filter(|address| address.port() != 0).peekable();
    if fixed.peek().is_some() && !fixed.any(|address| is_taken(*address)) {
        let addresses: Vec<_> = settings.server.listen.iter().map(ToString::to_string).collect();
        return Err(StartError::NoPredecessor { addresses: addresses.join(", ") });
    }
    Ok(())
}

fn threads(settings: &Settings) -> usize {
    match settings.server.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}
