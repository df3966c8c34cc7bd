//! Writes a response to a client: the head with the available part of the body, then each piece as it
//! arrives, in one write each and without a copy. Pieces are not delayed to be joined.

use bytes::Bytes;
use http_body::{Body, Frame};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tidegate_http1::{ChunkFrame, LAST_CHUNK, ResponseFraming};
use tokio::io::AsyncWrite;

/// End of a chunk, and end of the last chunk.
const CHUNK_END: &[u8] = b"\r\n";
const BODY_END: &[u8] = b"\r\n0\r\n\r\n";

/// Writer of one response.
pub struct ResponseWriter<B> {
    body: B,
    framing: ResponseFraming,
    staged: Staged,
    /// The next piece, read while the previous one was not written yet.
    next: Option<io::Result<Bytes>>,
    /// The body has ended and its end is staged.
    ended: bool,
    /// The body has ended and its end is not staged yet.
    over: bool,
    written: u64,
}

/// Parts of one write: head, chunk length, data, chunk end.
#[derive(Default)]
struct Staged {
    head: Vec<u8>,
    frame: Option<ChunkFrame>,
    data: Bytes,
    tail: &'static [u8],
    written: usize,
}

impl Staged {
    fn parts(&self) -> [&[u8]; 4] {
        let frame = self.frame.as_ref().map_or(&[][..], ChunkFrame::as_bytes);
        [&self.head, frame, &self.data, self.tail]
    }

    fn is_empty(&self) -> bool {
        self.written == self.parts().iter().map(|part| part.len()).sum::<usize>()
    }

    /// The unwritten parts.
    fn rest(&self) -> [IoSlice<'_>; 4] {
        let mut skip = self.written;
        self.parts().map(|part| {
            let here = skip.min(part.len());
            skip -= here;
            IoSlice::new(&part[here..])
        })
    }
}

impl<B, E> ResponseWriter<B>
where
    B: Body<Data = Bytes, Error = E> + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    pub fn new(head: Vec<u8>, framing: ResponseFraming, body: B) -> ResponseWriter<B> {
        let staged = Staged { head, ..Staged::default() };
        let ended = framing == ResponseFraming::None;
        ResponseWriter { body, framing, staged, next: None, ended, over: false, written: 0 }
    }

    /// The body, for the probe that detects whether the client has left.
    pub fn body(&mut self) -> &mut B {
        &mut self.body
    }

    /// Bytes written when the socket blocked; `None` if it has not.
    pub fn blocked_at(&self) -> Option<u64> {
        (!self.staged.is_empty()).then_some(self.written)
    }

    /// Writes the response. Pending while the socket blocks, or when everything is written and the body is
    /// pending.
    pub fn poll_send<Io: AsyncWrite + Unpin>(
        &mut self,
        io: &mut Io,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        // The head is sent together with available bytes of the body.
        let mut waits = self.staged.data.is_empty() && self.stage(context)?;
        loop {
            if !self.staged.is_empty() && self.poll_write(io, context)?.is_pending() {
                self.read_ahead(context);
                return Poll::Pending;
            }
            if self.ended || waits {
                ready!(Pin::new(&mut *io).poll_flush(context))?;
                return if self.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            waits = self.stage(context)?;
        }
    }

    /// Reads one more piece while the client does not read, so that the body can distinguish a silent
    /// engine from an unread one.
    fn read_ahead(&mut self, context: &mut Context<'_>) {
        if self.next.is_none() && !self.ended && !self.over {
            match self.poll_piece(context) {
                Poll::Pending => {}
                Poll::Ready(Ok(None)) => self.over = true,
                Poll::Ready(Ok(Some(piece))) => self.next = Some(Ok(piece)),
                Poll::Ready(Err(error)) => self.next = Some(Err(error)),
            }
        }
    }

    fn poll_write<Io: AsyncWrite + Unpin>(
        &mut self,
        io: &mut Io,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.staged.is_empty() {
            let rest = self.staged.rest();
            match ready!(Pin::new(&mut *io).poll_write_vectored(context, &rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => {
                    self.staged.written += written;
                    self.written += written as u64;
                }
            }
        }
        self.staged = Staged::default();
        Poll::Ready(Ok(()))
    }

    /// Stages the body's next piece or its end. Returns true if the body is pending; it wakes the task.
    fn stage(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let piece = match self.next.take() {
            Some(next) => Some(next?),
            None if self.over => None,
            None => match self.poll_piece(context) {
                Poll::Pending => return Ok(true),
                Poll::Ready(piece) => piece?,
            },
        };
        let chunked = self.framing == ResponseFraming::Chunked;
        let Some(piece) = piece else {
            self.ended = true;
            self.staged.tail = if chunked { LAST_CHUNK } else { &[] };
            return Ok(false);
        };
        self.staged.frame = chunked.then(|| ChunkFrame::new(piece.len()));
        self.staged.data = piece;
        self.staged.tail = if chunked { CHUNK_END } else { &[] };
        // The end of the body is sent with its last piece.
        match self.poll_piece(context) {
            Poll::Pending => return Ok(true),
            Poll::Ready(Ok(Some(next))) => self.next = Some(Ok(next)),
            Poll::Ready(Ok(None)) => {
                self.ended = true;
                self.staged.tail = if chunked { BODY_END } else { &[] };
            }
            // The pieces before the error are sent first.
            Poll::Ready(Err(error)) => self.next = Some(Err(error)),
        }
        Ok(false)
    }

    /// Returns the next non-empty data; `None` at the end of the body.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                None => return Poll::Ready(Ok(None)),
                Some(Ok(Ok(data))) if !data.is_empty() => return Poll::Ready(Ok(Some(data))),
                // Empty data or trailers.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::task::Waker;

    /// A body that yields these polls in order (`None`: pending), then its end.
    struct Pieces(VecDeque<Option<&'static str>>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.pop_front() {
                Some(Some(piece)) => {
                    Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece.as_bytes())))))
                }
                Some(None) => Poll::Pending,
                None => Poll::Ready(None),
            }
        }
    }

    /// A socket that takes at most this many bytes per write, from one slice or all, and records
    /// the writes.
    struct TestSocket {
        most: usize,
        vectored: bool,
        writes: Vec<String>,
    }

    impl AsyncWrite for TestSocket {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let slices = match self.vectored {
                true => slices.iter().map(|slice| slice.to_vec()).collect::<Vec<_>>().concat(),
                false => slices.iter().find(|s| !s.is_empty()).map_or(vec![], |s| s.to_vec()),
            };
            let taken = slices.len().min(self.most);
            self.writes.push(String::from_utf8(slices[..taken].to_vec()).unwrap());
            Poll::Ready(Ok(taken))
        }

        fn is_write_vectored(&self) -> bool {
            self.vectored
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn sends(
        framing: ResponseFraming,
        pieces: &[Option<&'static str>],
        most: usize,
        vectored: bool,
    ) -> Vec<String> {
        let body = Pieces(pieces.iter().copied().collect());
        let mut writer = ResponseWriter::new(b"HEAD\r\n\r\n".to_vec(), framing, body);
        let mut wire = TestSocket { most, vectored, writes: Vec::new() };
        let mut context = Context::from_waker(Waker::noop());
        while writer.poll_send(&mut wire, &mut context).is_pending() {}
        wire.writes
    }

    const ALL: usize = usize::MAX;

    #[test]
    fn a_complete_answer_is_sent_in_one_write() {
        let length = ResponseFraming::Length(4);
        assert_eq!(sends(length, &[Some("body")], ALL, true), ["HEAD\r\n\r\nbody"]);
        assert_eq!(sends(length, &[Some("body")], ALL, false), ["HEAD\r\n\r\n", "body"]);
        assert_eq!(sends(ResponseFraming::None, &[], ALL, true), ["HEAD\r\n\r\n"]);
    }

    #[test]
    fn pieces_are_sent_as_they_arrive_and_the_end_with_the_last() {
        let pieces = [Some("one"), None, Some("two"), Some(""), Some("three")];
        assert_eq!(
            sends(ResponseFraming::Chunked, &pieces, ALL, true),
            ["HEAD\r\n\r\n3\r\none\r\n", "3\r\ntwo\r\n", "5\r\nthree\r\n0\r\n\r\n"]
        );
        let later = [None, Some("one"), None];
        assert_eq!(
            sends(ResponseFraming::Chunked, &later, ALL, true),
            ["HEAD\r\n\r\n", "3\r\none\r\n", "0\r\n\r\n"]
        );
        assert_eq!(sends(ResponseFraming::UntilClose, &later, ALL, true), ["HEAD\r\n\r\n", "one"]);
    }

    #[test]
    fn a_partial_write_is_continued() {
        let pieces = [Some("one"), None, Some("two"), Some("three"), None];
        let whole = sends(ResponseFraming::Chunked, &pieces, ALL, true).concat();
        for most in 1..12 {
            for vectored in [true, false] {
                assert_eq!(
                    sends(ResponseFraming::Chunked, &pieces, most, vectored).concat(),
                    whole
                );
            }
        }
    }
}
