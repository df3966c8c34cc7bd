//! A client's connection after its handshake: the HTTP version is chosen by the first bytes.

use std::sync::Arc;
use tidegate_types::Seconds;
use tokio::sync::watch;

use super::preface::{self, Version};
use super::{http1, http2};
use crate::dispatch::context::Proxy;
use crate::listener::client_socket::ClientSocket;
use crate::listener::front::{App, ConnectedClient};
use crate::runtime::connections::ConnectionLimit;

/// How long a connection that has sent nothing is kept after the stop, for a request already under
/// way.
const FIRST_BYTES: Seconds = Seconds(0.5);

/// Serves the data port.
pub struct DataApp {
    /// State shared by all requests.
    pub proxy: Arc<Proxy>,
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
        let proxy = Arc::clone(&self.proxy);
        // Time limit for a request head, between two parts of a body, and between two requests.
        let patience = proxy.settings.load().values.server.keepalive;
        drop(self);
        let first = tokio::time::timeout(patience.to_duration(), preface::version(io));
        let first = tokio::select! {
            first = first => first,
            () = long_stopped(stop.clone()) => return,
        };
        match first {
            Ok(Ok((Version::Http1, io))) => http1::serve(proxy, patience, client, io, stop).await,
            // Boxed: unboxed, it would enlarge every connection's future.
            Ok(Ok((Version::Http2, io))) => {
                Box::pin(http2::serve(proxy, patience, client, io, stop)).await;
            }
            // Errors of clients that sent nothing or disconnected are ignored.
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// Resolves [`FIRST_BYTES`] after the stop. The receiver is a clone: the codec sees the stop too.
async fn long_stopped(mut stop: watch::Receiver<bool>) {
    stop.changed().await.ok();
    tokio::time::sleep(FIRST_BYTES.to_duration()).await;
}
