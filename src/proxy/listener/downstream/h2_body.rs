//! An answer's body on an HTTP/2 stream. hyper polls the next frame only while the client's flow-control
//! window is open, so that a client that does not read would occupy its engine indefinitely. After
//! `client_stall_seconds` with a closed window the body is dropped, which closes the engine's connection
//! and settles the request.

use bytes::Bytes;
use crossbeam_utils::atomic::AtomicCell;
use http_body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use tidegate_types::{Moment, Seconds};
use tokio::time::sleep;

use super::http2::CountedStream;
use crate::dispatch::context::Proxy;
use crate::request::body::RelayBody;
use crate::upstream::BrokenOff;

/// Checks per stall limit: a stall is detected at most a quarter of the limit late.
const CHECKS_PER_LIMIT: f64 = 4.0;

/// The body, shared by hyper's poll and the stall check.
struct WatchedBody {
    /// Empty while it is polled, and after a stall. A lock-free pointer.
    body: AtomicCell<Option<Box<RelayBody>>>,
    /// Time of the last frame given to hyper; `NEVER` while the engine's bytes are awaited.
    blocked_since: AtomicU64,
}

/// The body that hyper polls.
pub(super) struct H2Body {
    proxy: Arc<Proxy>,
    held: Arc<WatchedBody>,
    ended: bool,
    hint: SizeHint,
    _stream: CountedStream,
}

impl H2Body {
    /// The answer's body, with a stall check if it is incomplete.
    pub(super) fn new(
        proxy: Arc<Proxy>,
        stall: Seconds,
        body: RelayBody,
        stream: CountedStream,
    ) -> H2Body {
        let (ended, hint) = (body.is_end_stream(), body.size_hint());
        let held = Arc::new(WatchedBody {
            body: AtomicCell::new(Some(Box::new(body))),
            blocked_since: AtomicU64::new(proxy.clock.now().0),
        });
        if !ended {
            tokio::spawn(watch(Arc::clone(&proxy), stall, Arc::downgrade(&held)));
        }
        H2Body { proxy, held, ended, hint, _stream: stream }
    }
}

/// Drops the body of a client that does not read for `limit`; ends with the stream.
async fn watch(proxy: Arc<Proxy>, limit: Seconds, held: Weak<WatchedBody>) {
    loop {
        sleep((limit / CHECKS_PER_LIMIT).to_duration()).await;
        let Some(held) = held.upgrade() else { return };
        let since = Moment(held.blocked_since.load(Relaxed));
        if since != Moment::NEVER && proxy.clock.now() - since >= limit {
            // Empty while hyper polls it, which shows that the client reads.
            if held.body.take().is_some() {
                tracing::debug!("h2 client stalled for {limit}: stream closed");
                return;
            }
        }
    }
}

impl Body for H2Body {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.held.blocked_since.store(Moment::NEVER.0, Relaxed);
        let Some(mut body) = self.held.body.take() else {
            if self.ended {
                return Poll::Ready(None);
            }
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())));
        };
        let polled = Pin::new(&mut *body).poll_frame(context);
        self.hint = body.size_hint();
        self.ended = matches!(polled, Poll::Ready(None)) || body.is_end_stream();
        if !matches!(polled, Poll::Ready(None)) {
            self.held.body.store(Some(body));
        }
        if matches!(polled, Poll::Ready(Some(_))) {
            self.held.blocked_since.store(self.proxy.clock.now().0, Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}
