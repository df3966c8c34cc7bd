//! An answer's body on an HTTP/2 stream. hyper asks for its next frame only while the client's window
//! has room, so a client that does not read would hold its engine's place for ever: after
//! `client_stall_seconds` without room the body is dropped, which closes the engine's connection and
//! settles the request.

use bytes::Bytes;
use crossbeam_utils::atomic::AtomicCell;
use http_body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use tidegate_types::Moment;
use tokio::time::sleep;

use super::http2::Stream;
use crate::dispatch::context::Proxy;
use crate::request::body::RelayBody;
use crate::upstream::BrokenOff;

/// Checks per stall limit: a stalled stream is found at most a quarter of the limit late.
const LOOKS: f64 = 4.0;

/// The body, and the time since hyper last polled it for a frame.
struct Held {
    /// Taken out while it is polled; gone for good once the client has stalled. Lock-free: a pointer.
    body: AtomicCell<Option<Box<RelayBody>>>,
    /// When the last frame was handed to hyper; never: the engine's bytes are awaited.
    blocked_since: AtomicU64,
}

/// What hyper polls.
pub(super) struct H2Body {
    proxy: Arc<Proxy>,
    held: Arc<Held>,
    ended: bool,
    hint: SizeHint,
    _stream: Stream,
}

impl H2Body {
    /// The answer's body, watched if it is not all there.
    pub(super) fn new(proxy: Arc<Proxy>, body: RelayBody, stream: Stream) -> H2Body {
        let (ended, hint) = (body.is_end_stream(), body.size_hint());
        let held = Arc::new(Held {
            body: AtomicCell::new(Some(Box::new(body))),
            blocked_since: AtomicU64::new(proxy.clock.now().0),
        });
        if !ended {
            tokio::spawn(watch(Arc::clone(&proxy), Arc::downgrade(&held)));
        }
        H2Body { proxy, held, ended, hint, _stream: stream }
    }
}

/// Drop the body of a client that does not read; ends with the stream.
async fn watch(proxy: Arc<Proxy>, held: Weak<Held>) {
    let limit = proxy.client_stall;
    loop {
        sleep((limit / LOOKS).to_duration()).await;
        let Some(held) = held.upgrade() else { return };
        let since = Moment(held.blocked_since.load(Relaxed));
        if since != Moment::NEVER && proxy.clock.now() - since >= limit {
            // Taken while hyper polls it: then it is not stalled.
            if held.body.take().is_some() {
                tracing::debug!("an h2 client has read nothing for {limit}: its stream ends");
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
