//! A connection to an engine as a byte stream: TCP, or TLS on top of it.

use socket2::{SockRef, TcpKeepalive};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{Address, tls};
use crate::scratch::poll_read;

/// A connection on which nothing came for so long is probed.
const PROBE_AFTER: Duration = Duration::from_secs(15);
/// And then so often, three times.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Either kind.
pub(super) enum Socket {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    pub(super) async fn connect(
        address: &Address,
        tls: Option<&tls::Connector>,
    ) -> io::Result<Socket> {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.set_nodelay(true)?;
        // A host that is gone says nothing: without probes whoever waits for it waits for ever.
        SockRef::from(&stream).set_tcp_keepalive(
            &TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(3),
        )?;
        match tls {
            None => Ok(Socket::Tcp(stream)),
            Some(tls) => Ok(Socket::Tls(Box::new(tls.connect(&address.host, stream).await?))),
        }
    }

    /// Is nothing to be read from the kernel: neither bytes, nor the connection's end, nor an error?
    pub(super) fn is_quiet(&self) -> bool {
        let stream = match self {
            Socket::Tcp(stream) => stream,
            Socket::Tls(stream) => stream.get_ref().0,
        };
        let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Read what is there: how many bytes, 0 at the stream's end.
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

    /// Write as much of the slices as goes.
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

    /// See that what was written is on its way: TLS keeps records back until then.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Tcp(_) => Poll::Ready(Ok(())),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }
}
