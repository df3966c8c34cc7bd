//! A client's connection as a byte stream: TCP, or TLS on top of it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

pub enum ClientSocket {
    Tcp(TcpStream),
    /// TLS, after the handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Detects resets of a connection.
pub trait DetectReset {
    /// Returns whether the peer has reset the connection, which reads do not show after its half-close.
    fn is_reset(&self) -> bool;
}

impl DetectReset for ClientSocket {
    fn is_reset(&self) -> bool {
        let stream = match self {
            ClientSocket::Tcp(stream) => stream,
            ClientSocket::Tls(stream) => stream.get_ref().0,
        };
        // After a reset the socket has a pending error, or no peer address.
        !matches!(stream.take_error(), Ok(None)) || stream.peer_addr().is_err()
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ClientSocket::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            ClientSocket::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            ClientSocket::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            ClientSocket::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            ClientSocket::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            ClientSocket::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            ClientSocket::Tcp(stream) => stream.is_write_vectored(),
            ClientSocket::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ClientSocket::Tcp(stream) => Pin::new(stream).poll_flush(context),
            ClientSocket::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ClientSocket::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            ClientSocket::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
