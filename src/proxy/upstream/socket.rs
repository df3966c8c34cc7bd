//! A connection to an engine as a byte stream: TCP, or TLS on top of it.

use rustix::net::{RecvFlags, recv};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use super::connection::IdleState;
use super::{Address, tls};
use crate::runtime::thread_buffer::poll_read;

/// TCP keepalive: idle time before the first probe.
const PROBE_AFTER: Duration = Duration::from_secs(15);
/// TCP keepalive: time between probes, of which three are sent.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// First bytes of an engine's announcement of an idle time-out (RFC 9110, 15.5.9).
const TIMED_OUT: &[u8] = b"HTTP/1.1 408";

/// Returns whether the unread bytes are such an announcement.
fn is_timed_out(stream: &TcpStream) -> bool {
    let mut begin = [0; TIMED_OUT.len()];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    recv(stream, &mut begin, flags).is_ok_and(|_| begin == TIMED_OUT)
}

/// Connection attempt delay (RFC 8305, section 8), after which the next address is tried concurrently.
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// An engine's socket.
pub enum Socket {
    Tcp(TcpStream),
    /// TLS, after the handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    pub(super) async fn connect(
        address: &Address,
        tls: Option<&tls::EngineTls>,
    ) -> io::Result<Socket> {
        let stream = open(address).await?;
        stream.set_nodelay(true)?;
        // A failed host sends no reset: without keepalive probes the leg would wait indefinitely.
        SockRef::from(&stream).set_tcp_keepalive(
            &TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(3),
        )?;
        match tls {
            None => Ok(Socket::Tcp(stream)),
            Some(tls) => Ok(Socket::Tls(Box::new(tls.connect(&address.host, stream).await?))),
        }
    }

    /// Returns the state of an idle connection from the kernel's buffer. TLS bytes count as its end.
    pub(super) fn idle_state(&self) -> IdleState {
        let (stream, is_clear) = match self {
            Socket::Tcp(stream) => (stream, true),
            Socket::Tls(stream) => (stream.get_ref().0, false),
        };
        match SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => IdleState::Quiet,
            Ok(bytes) if bytes > 0 && is_clear && !is_timed_out(stream) => IdleState::Surplus,
            Ok(_) | Err(_) => IdleState::Ended,
        }
    }

    /// Reads available bytes. Returns their number, 0 at the end of the stream.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Socket::Tcp(stream) => poll_read(stream, context, into),
            Socket::Tls(stream) => poll_read(stream, context, into),
        }
    }

    /// Writes as many bytes of the slices as the socket accepts.
    pub(super) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Socket::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    /// Flushes TLS records.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Tcp(_) => Poll::Ready(Ok(())),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Socket::poll_write(self.get_mut(), context, &[IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Socket::poll_flush(self.get_mut(), context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// Connects to the first address of a name that answers.
async fn open(address: &Address) -> io::Result<TcpStream> {
    if let Some(ip) = address.ip {
        return TcpStream::connect((ip, address.port)).await;
    }
    let found: Vec<_> = lookup_host((address.host.as_str(), address.port)).await?.collect();
    match found.as_slice() {
        [one] => TcpStream::connect(one).await,
        _ => race(interleaved(found)).await,
    }
}

/// Interleaves the address families, starting with the family of the first address (RFC 8305, 4).
fn interleaved(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut all = Vec::new();
    loop {
        let pair = (one.next(), other.next());
        if pair == (None, None) {
            return all;
        }
        all.extend(pair.0);
        all.extend(pair.1);
    }
}

/// Tries the addresses in order, each after the attempt delay. The first connection cancels the others.
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut rest = addresses.into_iter();
    let mut opening = JoinSet::new();
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let next = rest.next();
        let is_last = next.is_none();
        if let Some(next) = next {
            opening.spawn(TcpStream::connect(next));
        }
        tokio::select! {
            opened = opening.join_next() => match opened {
                None => return Err(refused),
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => refused = error,
                Some(Err(error)) => refused = io::Error::other(error),
            },
            () = tokio::time::sleep(NEXT_AFTER), if !is_last => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket};

    #[test]
    fn address_families_are_interleaved() {
        let parse = |list: &[&str]| list.iter().map(|one| one.parse().unwrap()).collect();
        let found: Vec<SocketAddr> = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1"]);
        let all: Vec<SocketAddr> = parse(&["[::1]:1", "1.0.0.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(interleaved(found), all);
        assert_eq!(interleaved(Vec::new()), []);
    }

    #[tokio::test]
    async fn unreachable_addresses_are_skipped_for_the_next_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let refusing = TcpSocket::new_v4().unwrap();
        refusing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let refuses = refusing.local_addr().unwrap();
        // A listener with a full accept queue does not answer the SYN.
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(1).unwrap();
        let says_nothing = silent.local_addr().unwrap();
        let mut filling = JoinSet::new();
        for _ in 0..8 {
            filling.spawn(TcpStream::connect(says_nothing));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        for addresses in [vec![refuses, good], vec![says_nothing, good], vec![good, refuses]] {
            let opened = tokio::time::timeout(Duration::from_secs(10), race(addresses)).await;
            assert_eq!(opened.unwrap().unwrap().peer_addr().unwrap(), good);
        }
        assert!(race(vec![refuses, refuses]).await.is_err());
        assert!(race(Vec::new()).await.is_err());
    }
}
