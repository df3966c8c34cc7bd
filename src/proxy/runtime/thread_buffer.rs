//! Thread-local read buffer for sockets. A waiting stream owns no buffer; bytes are copied out at
//! their exact size before the next read.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// Size in bytes: more than engines write at once, except for large answers.
const SIZE: usize = 32 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SIZE].into_boxed_slice());
}

/// Runs `read` with the thread's buffer. `read` must not call `with` again.
pub(crate) fn with<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| read(buffer))
}

/// Reads available bytes into `into`. Returns their number, 0 at the end of the stream.
pub(crate) fn poll_read<Io: AsyncRead + Unpin>(
    io: &mut Io,
    context: &mut Context<'_>,
    into: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(into);
    ready!(Pin::new(io).poll_read(context, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}
