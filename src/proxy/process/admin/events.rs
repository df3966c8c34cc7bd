//! Bodies of admin answers: a whole one, or the server-sent events of `/v1/events`. A client that
//! reads slowly misses snapshots; it never delays the sampler or other clients.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, watch};

use super::sampler;
use crate::dispatch::context::Proxy;
use crate::listener::front::is_on;
use crate::telemetry::history::Subscriber;

/// Body of an answer.
pub enum AdminBody {
    Whole(Full<Bytes>),
    Events(mpsc::Receiver<Bytes>),
}

impl Body for AdminBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            AdminBody::Whole(whole) => Pin::new(whole).poll_frame(context),
            AdminBody::Events(events) => {
                events.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AdminBody::Whole(whole) => whole.is_end_stream(),
            AdminBody::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AdminBody::Whole(whole) => whole.size_hint(),
            AdminBody::Events(_) => SizeHint::default(),
        }
    }
}

/// Starts an event stream: one snapshot at once, then one a second until the client leaves or the
/// listener stops.
pub fn stream(
    proxy: &Arc<Proxy>,
    mut subscriber: Subscriber,
    mut stop: watch::Receiver<bool>,
) -> AdminBody {
    let (sender, events) = mpsc::channel(1);
    let mut next = sampler::event(proxy);
    tokio::spawn(async move {
        loop {
            let sent = tokio::select! {
                sent = sender.send(next) => sent.is_ok(),
                () = is_on(&mut stop) => false,
            };
            if !sent {
                return;
            }
            next = tokio::select! {
                event = subscriber.next() => match event {
                    Some(event) => event,
                    None => return,
                },
                () = sender.closed() => return,
                () = is_on(&mut stop) => return,
            };
        }
    });
    AdminBody::Events(events)
}
