//! The process: pingora's server with the data port, the admin port and the background tasks as
//! its services.

use pingora_core::listeners::ListenerConfig;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::protocols::l4::stream::L4BufferSettings;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::background::background_service;
use pingora_core::services::listening::Service;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use tidegate_settings::Settings;
use tokio::sync::Notify;

use crate::admin::AdminApp;
use crate::downstream::DataApp;
use crate::service::Proxy;
use crate::shutdown::{Drain, DrainParams};
use crate::start::{Built, StartError, build};

/// Run a proxy until the process is told to stop.
///
/// # Errors
/// [`StartError`] before anything listens; after that it runs.
pub fn run(settings: &Settings, listeners: Listeners) -> Result<(), StartError> {
    let (server, drain) = assemble(settings, true, listeners)?;
    server.run(RunArgs { shutdown_signal: Box::new(drain) });
    Ok(())
}

/// Where the listening sockets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listeners {
    /// This process opens them.
    Own,
    /// A running proxy hands them over, over `server.upgrade_socket`, when it gets SIGQUIT.
    Inherited,
}

/// A proxy inside another program: the demo, and tests.
pub struct Running {
    /// What its requests share.
    pub proxy: Arc<Proxy>,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

/// Run a proxy on a thread of its own. It is not yet listening when this returns.
///
/// # Errors
/// [`StartError`] before anything listens.
pub fn spawn(settings: &Settings) -> Result<Running, StartError> {
    let (server, drain) = assemble(settings, false, Listeners::Own)?;
    let (proxy, stop) = (Arc::clone(&drain.proxy), Arc::clone(&drain.stop));
    let run = move || server.run(RunArgs { shutdown_signal: Box::new(drain) });
    let thread = std::thread::Builder::new().name("tidegate".into()).spawn(run);
    let thread = thread
        .map_err(|source| StartError::Listen { address: "a new thread".to_owned(), source })?;
    Ok(Running { proxy, stop, thread: Some(thread) })
}

impl Running {
    /// Stop: requests in flight may finish within the drain time.
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
) -> Result<(Server, Drain), StartError> {
    let Built { proxy, background, commands } = build(settings)?;
    let mut conf = ServerConf::new().unwrap_or_default();
    conf.threads = threads(settings);
    // Only after SIGQUIT, when a new process has the sockets: requests here may finish.
    conf.grace_period_seconds = Some(settings.server.drain.get().ceil() as u64);
    conf.graceful_shutdown_timeout_seconds = Some(0);
    if let Some(socket) = &settings.server.upgrade_socket {
        conf.upgrade_sock = socket.display().to_string();
    }
    let upgrade = listeners == Listeners::Inherited;
    if !upgrade {
        for address in settings.server.listen.iter().chain([&settings.admin.listen]) {
            can_listen(*address)?;
        }
    }
    let opt = Opt { upgrade, ..Opt::default() };
    let mut server = Server::new_with_opt_and_conf(opt, conf);
    server.bootstrap();
    let data = DataApp { proxy: Arc::clone(&proxy), patience: settings.server.keepalive };
    let mut data = Service::new("data".to_owned(), data);
    for address in &settings.server.listen {
        data.add_listener(listener(settings, *address)?);
    }
    let admin = AdminApp { proxy: Arc::clone(&proxy), commands };
    let mut admin = Service::new("admin".to_owned(), admin);
    admin.threads = Some(1);
    admin.add_tcp(&settings.admin.listen.to_string());
    let mut background = background_service("control", background);
    background.threads = Some(1);
    server.add_service(background);
    server.add_service(data);
    server.add_service(admin);
    let params = DrainParams { linger: settings.server.linger, drain: settings.server.drain };
    Ok((server, Drain { proxy, params, stop: Arc::default(), signals }))
}

fn threads(settings: &Settings) -> usize {
    match settings.server.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

fn listener(settings: &Settings, address: SocketAddr) -> Result<ListenerConfig, StartError> {
    // Both codecs read into buffers of their own.
    let listener =
        ListenerConfig::tcp(address.to_string()).l4_buffer(L4BufferSettings::unbuffered());
    let Some(tls) = &settings.server.tls else { return Ok(listener) };
    let (cert, key) = (tls.cert.display().to_string(), tls.key.display().to_string());
    let mut tls = TlsSettings::intermediate(&cert, &key)
        .map_err(|error| StartError::ServerTls(error.to_string()))?;
    tls.enable_h2();
    Ok(listener.tls(tls))
}

/// pingora panics on a port that is taken, in a thread of its own: find out before.
fn can_listen(address: SocketAddr) -> Result<(), StartError> {
    TcpListener::bind(address)
        .map(drop)
        .map_err(|source| StartError::Listen { address: address.to_string(), source })
}
