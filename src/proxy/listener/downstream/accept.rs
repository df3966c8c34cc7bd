//! A client's connection after its handshake: what speaks HTTP on it is chosen by its first bytes.

use std::sync::Arc;
use tidegate_types::Seconds;
use tokio::sync::watch;

use super::preface::{self, Version};
use super::{http1, http2};
use crate::dispatch::context::Proxy;
use crate::listener::client_socket::ClientSocket;
use crate::listener::front::{App, ConnectedClient};
use crate::runtime::connections::ConnectionLimit;

/// Time that a connection without a byte has after the stop: its first request may be on its way.
const FIRST_BYTES: Seconds = Seconds(0.5);

/// Serves the data port.
pub struct DataApp {
    /// What all requests share.
    pub proxy: Arc<Proxy>,
    /// How long a client may take to send its header, to go on with a body, and to send the next
    /// request.
    pub patience: Seconds,
}

impl App for DataApp {
    fn refused(&self, refused: ConnectionLimit) {
        self.proxy.metrics.connection_refused(refused);
    }

    async fn serve(
        self: Arc<Self>,
        io: ClientSocket,
        client: ConnectedClient,
        stop: watch::Receiver<bool>,
    ) {
        let (proxy, patience) = (Arc::clone(&self.proxy), self.patience);
        drop(self);
        let first = tokio::time::timeout(patience.to_duration(), preface::version(io));
        let first = tokio::select! {
            first = first => first,
            () = long_stopped(stop.clone()) => return,
        };
        match first {
            Ok(Ok((Version::Http1, io))) => http1::serve(proxy, patience, client, io, stop).await,
            // Boxed, or every connection would keep room for it.
            Ok(Ok((Version::Http2, io))) => {
                Box::pin(http2::serve(proxy, patience, client, io, stop)).await;
            }
            // A client that sent nothing, or left, asked for nothing.
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// Resolves [`FIRST_BYTES`] after the stop. The receiver is a clone: the codec sees the stop too.
async fn long_stopped(mut stop: watch::Receiver<bool>) {
    stop.changed().await.ok();
    tokio::time::sleep(FIRST_BYTES.to_duration()).await;
}
