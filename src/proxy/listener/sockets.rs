//! The listening sockets of the data and admin ports. They are opened before serving, so that a port in
//! use is an error of `serve`, or received from a predecessor.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use thiserror::Error;
use tidegate_settings::Settings;

/// Listen backlog; also limited by the kernel's `somaxconn`.
const BACKLOG: i32 = 65_535;

/// A socket could not be opened.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}")]
pub struct ListenError {
    /// The address as configured.
    pub address: String,
    pub source: io::Error,
}

/// One listening socket.
#[derive(Debug)]
pub struct BoundListener {
    /// The configured address, by which a successor identifies the socket.
    pub name: String,
    pub listener: TcpListener,
}

/// The listening sockets of a proxy.
#[derive(Debug)]
pub struct Sockets {
    pub data: Vec<BoundListener>,
    pub admin: BoundListener,
    /// Address for other gateways.
    pub gateways: Option<BoundListener>,
}

/// The addresses of a proxy, with the actual port if 0 was configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Data port.
    pub data: Vec<SocketAddr>,
    /// Admin port.
    pub admin: SocketAddr,
}

impl Sockets {
    /// Opens the configured sockets, except those that were received.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn open(
        settings: &Settings,
        mut received: Vec<(String, OwnedFd)>,
    ) -> Result<Sockets, ListenError> {
        let mut one = |address: &SocketAddr| {
            let name = address.to_string();
            let listener = match received.iter().position(|(known, _)| *known == name) {
                Some(at) => Ok(TcpListener::from(received.swap_remove(at).1)),
                None => listen(*address),
            };
            let failed = |source| ListenError { address: name.clone(), source };
            Ok::<_, ListenError>(BoundListener { listener: listener.map_err(failed)?, name })
        };
        let data = settings.server.listen.iter().map(&mut one).collect::<Result<_, _>>()?;
        let admin = one(&settings.admin.listen)?;
        let gateways = settings.gateways.listen.as_ref().map(&mut one).transpose()?;
        for (name, _) in received {
            tracing::warn!(address = %name, "address is no longer configured: listener closed");
        }
        Ok(Sockets { data, admin, gateways })
    }

    /// Returns the actual addresses.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn addresses(&self) -> Result<Addresses, ListenError> {
        let address = |bound: &BoundListener| {
            let failed = |source| ListenError { address: bound.name.clone(), source };
            bound.listener.local_addr().map_err(failed)
        };
        let data = self.data.iter().map(address).collect::<Result<_, _>>()?;
        Ok(Addresses { data, admin: address(&self.admin)? })
    }

    /// Returns duplicate handles of the sockets, for the hand-over.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn share(&self) -> io::Result<Vec<BoundListener>> {
        let all = self.data.iter().chain([&self.admin]).chain(&self.gateways);
        let second = |bound: &BoundListener| {
            let listener = bound.listener.try_clone()?;
            Ok(BoundListener { name: bound.name.clone(), listener })
        };
        all.map(second).collect()
    }
}

/// Returns whether another process listens on the address, tested by binding it.
pub fn is_taken(address: SocketAddr) -> bool {
    listen(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // SO_REUSEADDR: a restart can bind while connections of the previous process are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
