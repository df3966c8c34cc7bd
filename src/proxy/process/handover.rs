//! Hands the listeners of a running proxy to its successor over a Unix socket, so that no connection
//! is refused during an upgrade. Both processes hold the same sockets; the old process accepts until
//! the new one reports that it serves. If the new one ends before that, the old one continues.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::io::AsyncReadExt;

use crate::listener::sockets::BoundListener;

/// Longest time for which a successor waits for the running proxy to receive SIGQUIT.
const WAIT: Duration = Duration::from_secs(60);
/// Interval of its checks.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Linux's SCM_MAX_FD.
const LISTENERS_MAX: usize = 253;
/// Bytes for the names of that many listeners.
const NAMES_BYTES: usize = 16 << 10;
/// The successor's message once it accepts connections.
const SERVING: &[u8] = b"serving";

/// Why no listeners were received.
#[derive(Debug, Error)]
pub enum HandOverError {
    /// The socket cannot be created.
    #[error("cannot listen on server.upgrade_socket {path}: {source}")]
    Socket { path: String, source: io::Error },
    /// No SIGQUIT, or no running proxy with the same socket.
    #[error(
        "no running proxy sent its listeners over {0} within 60 s: send it SIGQUIT after this \
         process has started; both need the same server.upgrade_socket"
    )]
    Nothing(String),
    /// The received message does not contain listeners.
    #[error("the message received over {path} holds no listeners: {source}")]
    NotListeners { path: String, source: io::Error },
}

/// The successor's end of the hand-over connection.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

/// Listeners received from a predecessor.
#[derive(Debug)]
pub struct ReceivedListeners {
    /// Its listeners, by configured address.
    pub listeners: Vec<(String, OwnedFd)>,
    /// The connection to the process that waits until they are served.
    pub predecessor: Predecessor,
}

impl Predecessor {
    /// Notifies the predecessor that this process accepts connections; the predecessor then stops.
    ///
    /// # Errors
    /// The predecessor has ended.
    pub fn release(mut self) -> io::Result<()> {
        self.0.write_all(SERVING)
    }
}

/// Waits for a running proxy to send its listeners.
///
/// # Errors
/// [`HandOverError`].
pub fn receive(path: &Path) -> Result<ReceivedListeners, HandOverError> {
    let named = || path.display().to_string();
    let socket = bind(path).map_err(|source| HandOverError::Socket { path: named(), source })?;
    tracing::info!(
        "upgrade: waiting for listeners on {}: send SIGQUIT to the running proxy",
        named()
    );
    let accepted = accept(&socket);
    // One hand-over per socket.
    std::fs::remove_file(path).ok();
    let stream = accepted.map_err(|_| HandOverError::Nothing(named()))?;
    let not_listeners = |source| HandOverError::NotListeners { path: named(), source };
    let listeners = take(&stream).map_err(not_listeners)?;
    Ok(ReceivedListeners { listeners, predecessor: Predecessor(stream) })
}

/// Creates the socket with mode 0600, because this process trusts the listeners it receives there.
#[allow(clippy::disallowed_methods, reason = "a socket that the settings name")]
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            return Err(io::Error::other("the path exists and is not a socket"));
        }
        // Left by a killed successor. A second waiting successor would lose its socket.
        std::fs::remove_file(path)?;
    }
    let socket = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[allow(clippy::disallowed_methods, reason = "before the proxy and its clock exist")]
fn accept(socket: &UnixListener) -> io::Result<UnixStream> {
    let end = Instant::now() + WAIT;
    loop {
        match socket.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(WAIT))?;
                return Ok(stream);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

fn take(stream: &UnixStream) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut names = vec![0; NAMES_BYTES];
    let mut parts = [IoSliceMut::new(&mut names)];
    let got = recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            sockets.extend(fds);
        }
    }
    let names = names.get(..got.bytes).unwrap_or_default();
    let names = std::str::from_utf8(names).map_err(io::Error::other)?;
    let names: Vec<String> = names.lines().map(str::to_owned).collect();
    match names.len() == sockets.len() && !sockets.is_empty() {
        true => Ok(names.into_iter().zip(sockets).collect()),
        false => Err(io::Error::other("names and sockets do not match")),
    }
}

/// Sends the listeners to the successor that waits at `path`.
///
/// # Errors
/// No successor waits there, or it has ended.
pub fn send(path: &Path, listeners: &[BoundListener]) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    let names: Vec<&str> = listeners.iter().map(|bound| bound.name.as_str()).collect();
    let names = names.join("\n");
    let sockets: Vec<BorrowedFd<'_>> = listeners.iter().map(|b| b.listener.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if names.len() > NAMES_BYTES || !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other("there are too many listeners"));
    }
    sendmsg(&stream, &[IoSlice::new(names.as_bytes())], &mut ancillary, SendFlags::empty())?;
    Ok(stream)
}

/// Waits until the successor serves. Returns false if it ended before.
///
/// # Errors
/// An error of the socket.
pub async fn is_served(stream: UnixStream) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    let mut stream = tokio::net::UnixStream::from_std(stream)?;
    let mut message = Vec::new();
    stream.read_to_end(&mut message).await?;
    Ok(message == SERVING)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test waits for another thread")]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[tokio::test]
    async fn listeners_arrive_with_their_names_and_the_successor_answers() {
        let directory = std::env::temp_dir().join(format!("tidegate-up-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("upgrade.sock");
        let bound = |name: &str| BoundListener {
            name: name.to_owned(),
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
        };
        assert!(send(&path, &[bound("a")]).is_err(), "no successor waits");
        std::fs::write(&path, "a file").unwrap();
        assert!(matches!(receive(&path), Err(HandOverError::Socket { .. })));
        assert!(path.exists(), "a file that is not a socket is not removed");
        std::fs::remove_file(&path).unwrap();

        let sent = [bound("127.0.0.1:1"), bound("[::]:2")];
        let at = path.clone();
        let receiving = std::thread::spawn(move || receive(&at).unwrap());
        let stream = loop {
            match send(&path, &sent) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(POLL_INTERVAL),
            }
        };
        let ReceivedListeners { listeners, predecessor } = receiving.join().unwrap();
        for (sent, (name, socket)) in sent.iter().zip(listeners) {
            let received = TcpListener::from(socket).local_addr().unwrap();
            assert_eq!((&sent.name, sent.listener.local_addr().unwrap()), (&name, received));
        }
        predecessor.release().unwrap();
        assert!(is_served(stream).await.unwrap());
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[tokio::test]
    async fn a_successor_that_dies_has_not_taken_over() {
        let (old, new) = UnixStream::pair().unwrap();
        drop(new);
        assert!(!is_served(old).await.unwrap());
    }
}
