//! Detects the HTTP version of a connection by its first bytes: h2 has a preface. The codec reads the
//! detected bytes again, with those that arrived since.
//!
//! hyper-util's `auto` connection does the same for hyper's own HTTP/1.1.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::listener::client_socket::DetectReset;

/// RFC 9113, 3.4.
const H2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// HTTP version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1, or invalid bytes that its codec refuses.
    Http1,
    /// HTTP/2 with prior knowledge, or after TLS.
    Http2,
}

/// A connection that repeats the bytes read by the detection.
#[derive(Debug)]
pub struct Replay<Io> {
    first: [u8; H2.len()],
    /// Start of the bytes to repeat, which end at `filled`.
    at: usize,
    filled: usize,
    io: Io,
}

/// Reads bytes until the version is known.
///
/// # Errors
/// The connection fails.
pub async fn version<Io: AsyncRead + Unpin>(mut io: Io) -> io::Result<(Version, Replay<Io>)> {
    let (mut first, mut filled) = ([0; H2.len()], 0);
    let version = loop {
        let read = io.read(&mut first[filled..]).await?;
        filled += read;
        if read == 0 || first[..filled] != H2[..filled] {
            break Version::Http1;
        }
        if filled == H2.len() {
            break Version::Http2;
        }
    };
    Ok((version, Replay { first, at: 0, filled, io }))
}

impl<Io: DetectReset> DetectReset for Replay<Io> {
    fn is_reset(&self) -> bool {
        self.io.is_reset()
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Replay<Io> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let again = (this.filled - this.at).min(buffer.remaining());
        if again == 0 {
            return Pin::new(&mut this.io).poll_read(context, buffer);
        }
        buffer.put_slice(&this.first[this.at..this.at + again]);
        this.at += again;
        // Available bytes of the same request are read too; an error is reported by the next read.
        match Pin::new(&mut this.io).poll_read(context, buffer) {
            Poll::Ready(_) | Poll::Pending => Poll::Ready(Ok(())),
        }
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Replay<Io> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// Returns the detected version and the bytes read afterwards, for a client that sends `pieces`
    /// one by one.
    async fn sends(pieces: &[&[u8]]) -> (Version, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(1);
        let sending = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
            }
            drop(client);
        };
        let reading = async {
            let (version, mut replay) = version(server).await.unwrap();
            let mut all = Vec::new();
            replay.read_to_end(&mut all).await.unwrap();
            (version, all)
        };
        tokio::join!(sending, reading).1
    }

    #[tokio::test]
    async fn the_version_is_detected_and_its_bytes_are_read_again() {
        let more = [H2.as_slice(), b"frames"].concat();
        assert_eq!(sends(&[&more]).await, (Version::Http2, more));
        for request in [b"POST / HTTP/1.1\r\n\r\n".as_slice(), b"PRI * HTTP/1.1\r\n\r\n", b"P", b""]
        {
            assert_eq!(sends(&[request]).await, (Version::Http1, request.to_vec()));
        }
    }

    #[tokio::test]
    async fn available_bytes_are_read_in_one_call() {
        let (mut client, server) = tokio::io::duplex(1024);
        let request = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n\r\n";
        client.write_all(request).await.unwrap();
        let (_, mut replay) = version(server).await.unwrap();
        let mut buffer = [0; 256];
        assert_eq!(replay.read(&mut buffer).await.unwrap(), request.len());
        // A read buffer smaller than the detected bytes receives them in parts.
        client.write_all(b"x").await.unwrap();
        assert_eq!(replay.read(&mut buffer).await.unwrap(), 1);
    }
}
