//! Reads from a client: heads, bodies, and the end of the connection. Bytes are read into the thread's
//! buffer, so that an idle connection holds none. Bytes beyond a message are kept for the next one.

use bytes::{BufMut, Bytes, BytesMut};
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use thiserror::Error;
use tidegate_http1::{
    BodyError, BodyReader, Framing, HEAD_MAX, HeadError, RequestHead, read_request,
};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use super::pace::allowance;
use crate::runtime::budget::BudgetShare;
use crate::runtime::thread_buffer::{self, poll_read};

/// Most bytes kept that a client sends before its answer has ended.
const AHEAD_MAX: usize = 64 << 10;
/// Bytes of a body per read: about 0.1 ms. Without it, a fast sender occupies the thread for tokio's
/// budget of 128 reads of up to the socket's buffer, 6 MB.
const READ_MAX: usize = 256 << 10;

/// The reading half of a client's connection.
pub struct RequestReader<Io> {
    pub(super) io: Io,
    /// Longest wait for the next bytes of a body.
    pub(super) patience: Duration,
    /// Bytes read beyond the current message; usually empty.
    ahead: Vec<u8>,
}

/// How a client closed its connection before its answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientClose {
    /// The sending half is closed: the client has left, or waits for its answer.
    Half,
    /// The connection was reset.
    Reset,
}

/// Why no head was read.
#[derive(Debug, Error)]
pub enum HeadReadError {
    /// The client closed the connection, between requests or within a head.
    #[error("the client closed the connection")]
    Closed,
    /// The socket failed.
    #[error("reading from the client failed: {0}")]
    Io(#[from] io::Error),
    /// The bytes are not a valid request; the client gets an error.
    #[error("the request is not usable: {0}")]
    Head(#[from] HeadError),
}

/// Why a body was not read.
#[derive(Debug, Error)]
pub enum BodyReadError {
    /// The client closed the connection within the body.
    #[error("the client closed the connection in the middle of a body")]
    Closed,
    /// The socket failed.
    #[error("reading from the client failed: {0}")]
    Io(#[from] io::Error),
    /// Its chunks are malformed.
    #[error(transparent)]
    Malformed(#[from] BodyError),
    /// The client sent no further bytes in time.
    #[error("the client stopped sending its body")]
    Stalled,
    /// It is larger than allowed; the rest was not read.
    #[error("the body is too large")]
    TooLarge,
    /// It does not fit into the budget of all bodies; the rest was not read.
    #[error("the body budget is in use")]
    NoRoom,
}

impl<Io: AsyncRead + Unpin> RequestReader<Io> {
    /// A reader of a new connection; `patience`: longest wait for the next bytes of a body.
    pub fn new(io: Io, patience: Duration) -> RequestReader<Io> {
        RequestReader { io, patience, ahead: Vec::new() }
    }

    /// Takes the bytes read beyond the last message.
    pub fn take_ahead(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.ahead)
    }

    /// Returns whether part of the next request was read.
    pub fn has_begun(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Reads the next head. A partial head is kept if the future is dropped.
    pub async fn head(&mut self) -> Result<RequestHead, HeadReadError> {
        if self.has_begun() {
            let begun = std::mem::take(&mut self.ahead);
            if let Some(head) = self.take_head(&begun)? {
                return Ok(head);
            }
        }
        std::future::poll_fn(|context| self.poll_head(context)).await
    }

    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<RequestHead, HeadReadError>> {
        thread_buffer::with(|scratch| {
            loop {
                let read = ready!(poll_read(&mut self.io, context, scratch))?;
                if read == 0 {
                    return Poll::Ready(Err(HeadReadError::Closed));
                }
                let head = if self.has_begun() {
                    self.ahead.extend_from_slice(&scratch[..read]);
                    // A head ends with a line end, so that bytes without one need no parse.
                    if self.ahead.len() <= HEAD_MAX && !scratch[..read].contains(&b'\n') {
                        continue;
                    }
                    let begun = std::mem::take(&mut self.ahead);
                    self.take_head(&begun)?
                } else {
                    self.take_head(&scratch[..read])?
                };
                if let Some(head) = head {
                    return Poll::Ready(Ok(head));
                }
            }
        })
    }

    /// Parses a head from `bytes` and keeps the rest.
    fn take_head(&mut self, bytes: &[u8]) -> Result<Option<RequestHead>, HeadError> {
        // Empty lines before a request are ignored (RFC 9112, 2.2). Kept, they would be parsed repeatedly.
        let begin = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
        let bytes = &bytes[begin.unwrap_or(bytes.len())..];
        let head = read_request(bytes)?;
        let taken = head.as_ref().map_or(0, |head| head.length);
        self.ahead = bytes[taken..].to_vec();
        Ok(head)
    }

    /// Returns whether the whole body was read with its head.
    pub fn has_body(&self, framing: Framing) -> bool {
        match framing {
            Framing::Length(length) => self.ahead.len() as u64 >= length,
            Framing::Chunked | Framing::UntilClose => false,
        }
    }

    /// Drops a body that was read with its head. Returns false, and drops nothing, if it is incomplete.
    pub fn skip_body(&mut self, framing: Framing) -> bool {
        match framing {
            Framing::Length(length) if self.has_body(framing) => {
                self.ahead.drain(..length as usize);
                true
            }
            _ => false,
        }
    }

    /// Reads a body of at most `max` bytes. An announced length has been charged to the body budget
    /// (`held`); otherwise each part is charged as it arrives.
    pub async fn body(
        &mut self,
        framing: Framing,
        max: usize,
        held: &mut BudgetShare,
    ) -> Result<Bytes, BodyReadError> {
        match framing {
            Framing::Length(0) => Ok(Bytes::new()),
            Framing::Length(length) => match usize::try_from(length) {
                Ok(length) if length <= max => self.read_exactly(length).await,
                _ => Err(BodyReadError::TooLarge),
            },
            Framing::Chunked | Framing::UntilClose => self.chunks(framing, max, held).await,
        }
    }

    async fn read_exactly(&mut self, length: usize) -> Result<Bytes, BodyReadError> {
        let mut body = std::mem::take(&mut self.ahead);
        if body.len() > length {
            self.ahead = body.split_off(length);
            body.shrink_to_fit();
        }
        if body.len() == length {
            return Ok(Bytes::from(body));
        }
        // Reserved at once: untouched pages use no memory, and growth would copy.
        let mut all = BytesMut::with_capacity(length);
        all.extend_from_slice(&body);
        drop(body);
        let began = Instant::now();
        while all.len() < length {
            let (came, left) = (all.len(), length - all.len());
            let mut room = (&mut all).limit(left.min(READ_MAX));
            let patience = self.patience.min(allowance(began.elapsed(), came));
            let reading = timeout(patience, self.io.read_buf(&mut room));
            match reading.await.map_err(|_| BodyReadError::Stalled)?? {
                0 => return Err(BodyReadError::Closed),
                // Lets other tasks of this thread run between two large reads.
                READ_MAX => yield_now().await,
                _ => {}
            }
        }
        Ok(all.freeze())
    }

    async fn chunks(
        &mut self,
        framing: Framing,
        max: usize,
        held: &mut BudgetShare,
    ) -> Result<Bytes, BodyReadError> {
        let mut reader = BodyReader::new(framing);
        let mut all = BytesMut::new();
        let mut begun = std::mem::take(&mut self.ahead);
        self.add(&mut reader, &mut begun, &mut all, (max, &mut *held))?;
        let began = Instant::now();
        while !reader.is_done() {
            let patience = self.patience.min(allowance(began.elapsed(), all.len()));
            let reading = std::future::poll_fn(|context| {
                thread_buffer::with(|scratch| {
                    match ready!(poll_read(&mut self.io, context, scratch))? {
                        0 => Poll::Ready(Err(BodyReadError::Closed)),
                        read => {
                            let room = (max, &mut *held);
                            Poll::Ready(self.add(&mut reader, &mut scratch[..read], &mut all, room))
                        }
                    }
                })
            });
            timeout(patience, reading).await.map_err(|_| BodyReadError::Stalled)??;
        }
        Ok(all.freeze())
    }

    fn add(
        &mut self,
        reader: &mut BodyReader,
        bytes: &mut [u8],
        all: &mut BytesMut,
        (max, held): (usize, &mut BudgetShare),
    ) -> Result<(), BodyReadError> {
        let piece = reader.read(bytes)?;
        if all.len() + piece.data.len() > max {
            return Err(BodyReadError::TooLarge);
        }
        if !held.grow(piece.data.len()) {
            return Err(BodyReadError::NoRoom);
        }
        all.extend_from_slice(&bytes[piece.data]);
        self.ahead = bytes[piece.consumed..].to_vec();
        Ok(())
    }

    /// Ready when the client has closed its sending half or the socket has failed. Up to
    /// [`AHEAD_MAX`] bytes received meanwhile are kept for the next request; further bytes stay in
    /// the socket.
    pub fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<ClientClose> {
        thread_buffer::with(|scratch| {
            while self.ahead.len() < AHEAD_MAX {
                match ready!(poll_read(&mut self.io, context, scratch)) {
                    Ok(0) => return Poll::Ready(ClientClose::Half),
                    Err(_) => return Poll::Ready(ClientClose::Reset),
                    Ok(read) => self.ahead.extend_from_slice(&scratch[..read]),
                }
            }
            Poll::Pending
        })
    }

    /// Reads and discards bytes until the client closes.
    pub async fn drain(&mut self) {
        poll_fn(|context| {
            thread_buffer::with(|forgotten| {
                while ready!(thread_buffer::poll_read(&mut self.io, context, forgotten))
                    .is_ok_and(|read| read > 0)
                {}
                Poll::Ready(())
            })
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::budget::BodyBudget;
    use tokio::io::AsyncWriteExt;

    const MAX: usize = 100;
    const TIMEOUT: Duration = Duration::from_secs(60);

    /// Parses the requests of a connection on which `wire` arrives in pieces of `step` bytes.
    async fn reads(wire: &[u8], step: usize) -> Vec<Result<Bytes, String>> {
        let (mut client, server) = tokio::io::duplex(step);
        let sending = async {
            // The reader may close before everything is written.
            client.write_all(wire).await.ok();
            drop(client);
        };
        let reading = async {
            let mut reader = RequestReader::new(server, TIMEOUT);
            let mut bodies = Vec::new();
            loop {
                let head = match reader.head().await {
                    Ok(head) => head,
                    Err(HeadReadError::Closed) => return bodies,
                    Err(error) => {
                        bodies.push(Err(error.to_string()));
                        return bodies;
                    }
                };
                let mut held = BodyBudget::new(usize::MAX).try_hold(0).unwrap();
                let body = reader.body(head.framing, MAX, &mut held).await;
                let failed = body.is_err();
                bodies.push(body.map_err(|error| error.to_string()));
                if failed {
                    return bodies;
                }
            }
        };
        tokio::join!(sending, reading).1
    }

    #[tokio::test]
    async fn requests_in_sequence_are_read_for_every_split_of_the_input() {
        let wire = b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhello\
                     \r\n\r\nGET /b HTTP/1.1\r\nhost: h\r\n\r\n\
                     POST /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n\
                     POST /d HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{}";
        let bodies =
            ["hello", "", "abcde", "{}"].map(|body| Ok(Bytes::from_static(body.as_bytes())));
        for step in [1, 2, 7, 64, wire.len()] {
            assert_eq!(reads(wire, step).await, bodies, "{step}");
        }
    }

    #[tokio::test]
    async fn a_body_above_the_limit_is_not_read_to_its_end() {
        let long = "x".repeat(MAX + 1);
        let announced =
            format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{long}", MAX + 1);
        let chunked = format!(
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
            MAX + 1
        );
        for wire in [announced, chunked] {
            let read = reads(wire.as_bytes(), 16).await;
            assert_eq!(read, [Err(BodyReadError::TooLarge.to_string())]);
        }
        let fits =
            format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {MAX}\r\n\r\n{}", &long[..MAX]);
        assert!(reads(fits.as_bytes(), 16).await[0].is_ok());
    }

    #[tokio::test]
    async fn truncated_and_invalid_requests_are_errors() {
        for (wire, error) in [
            (
                "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhel",
                BodyReadError::Closed.to_string(),
            ),
            (
                "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
                BodyError::Chunk.to_string(),
            ),
        ] {
            assert_eq!(reads(wire.as_bytes(), 9).await, [Err(error)]);
        }
        assert!(reads(b"\x16\x03\x01\x02", 9).await[0].is_err());
        assert!(reads(b"GET / HT", 9).await.is_empty(), "an incomplete head is no request");
    }

    #[tokio::test]
    async fn a_half_close_is_detected_and_later_bytes_are_kept() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut reader = RequestReader::new(server, TIMEOUT);
        client.write_all(b"GET /next HTTP/1.1\r\nhost: h\r\n").await.unwrap();
        assert_eq!(closed(&mut reader), Poll::Pending);
        client.write_all(b"\r\n").await.unwrap();
        drop(client);
        assert_eq!(closed(&mut reader), Poll::Ready(ClientClose::Half));
        assert_eq!(reader.head().await.unwrap().uri.path(), "/next");
    }

    #[tokio::test]
    async fn bytes_beyond_the_buffer_stay_in_the_socket() {
        let (mut client, server) = tokio::io::duplex(4 * AHEAD_MAX);
        let mut reader = RequestReader::new(server, TIMEOUT);
        client.write_all(&vec![b'x'; 3 * AHEAD_MAX]).await.unwrap();
        assert_eq!(closed(&mut reader), Poll::Pending);
        assert!(reader.ahead.len() < 2 * AHEAD_MAX);
    }

    fn closed<Io: AsyncRead + Unpin>(reader: &mut RequestReader<Io>) -> Poll<ClientClose> {
        reader.poll_closed(&mut Context::from_waker(std::task::Waker::noop()))
    }
}
