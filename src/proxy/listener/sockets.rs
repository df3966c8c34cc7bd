//! The sockets that clients and operators connect to. They are opened before anything is served, so
//! that a port that is taken is an error of `serve`; or a predecessor hands them over.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use thiserror::Error;
use tidegate_settings::Settings;

/// Connections that may wait to be accepted; the kernel's `somaxconn` bounds it too.
const BACKLOG: i32 = 65_535;

/// An address cannot be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}")]
pub struct ListenError {
    /// The address as configured.
    pub address: String,
    /// Why.
    pub source: io::Error,
}

/// One listening socket.
#[derive(Debug)]
pub struct Bound {
    /// The address as it was configured: a successor finds the socket by it.
    pub name: String,
    /// The socket.
    pub listener: TcpListener,
}

/// All of a proxy's.
#[derive(Debug)]
pub struct Sockets {
    /// The data port's.
    pub data: Vec<Bound>,
    /// The admin port's.
    pub admin: Bound,
}

/// Where a proxy listens: with the port that the system chose, if 0 was configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The data port's.
    pub data: Vec<SocketAddr>,
    /// The admin port's.
    pub admin: SocketAddr,
}

impl Sockets {
    /// Open every socket that the settings name, but for those that were received.
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
            Ok::<_, ListenError>(Bound { listener: listener.map_err(failed)?, name })
        };
        let data = settings.server.listen.iter().map(&mut one).collect::<Result<_, _>>()?;
        let admin = one(&settings.admin.listen)?;
        for (name, _) in received {
            tracing::warn!(address = %name, "is not configured any more: its listener closes");
        }
        Ok(Sockets { data, admin })
    }

    /// Where they listen.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn addresses(&self) -> Result<Addresses, ListenError> {
        let address = |bound: &Bound| {
            let failed = |source| ListenError { address: bound.name.clone(), source };
            bound.listener.local_addr().map_err(failed)
        };
        let data = self.data.iter().map(address).collect::<Result<_, _>>()?;
        Ok(Addresses { data, admin: address(&self.admin)? })
    }

    /// Second handles on the same sockets, to hand over.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn share(&self) -> io::Result<Vec<Bound>> {
        let all = self.data.iter().chain([&self.admin]);
        let second = |bound: &Bound| {
            let listener = bound.listener.try_clone()?;
            Ok(Bound { name: bound.name.clone(), listener })
        };
        all.map(second).collect()
    }
}

/// Does some process listen there? Found out by binding, which a listener forbids.
pub fn is_taken(address: SocketAddr) -> bool {
    listen(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of the process before it to time out.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
