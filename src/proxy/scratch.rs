//! Where a thread reads sockets into. A stream that waits for its next token keeps no buffer; what
//! is read is copied out, to its size, before the next one reads.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// More than an engine writes at once, but for large answers.
const SIZE: usize = 32 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SIZE].into_boxed_slice());
}

/// Runs `read` with the thread's buffer. `read` must not come here again.
pub(crate) fn with<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|buffer| read(buffer))
}

/// Read what is there: how many bytes, 0 at the stream's end.
pub(crate) fn poll_read<Io: AsyncRead + Unpin>(
    io: &mut Io,
    context: &mut Context<'_>,
    into: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(into);
    ready!(Pin::new(io).poll_read(context, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}
