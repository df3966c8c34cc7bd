//! A client's connection: pingora accepts it and, if so configured, terminates TLS. What speaks
//! HTTP on it is chosen by its first bytes.

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use std::sync::Arc;
use tidegate_terms::Seconds;

use super::preface::{self, Version};
use super::{http1, http2};
use crate::service::Proxy;

/// Serves the data port.
pub struct DataApp {
    /// What all requests share.
    pub proxy: Arc<Proxy>,
    /// How long a client may take to send its header, to go on with a body, and to send the next
    /// request.
    pub patience: Seconds,
}

#[async_trait]
impl ServerApp for DataApp {
    /// Takes the connection over into a task of its own: pingora's keeps room for a TLS handshake
    /// as long as it lives, 9 KB that a stream does not need.
    async fn process_new(self: &Arc<Self>, io: Stream, stop: &ShutdownWatch) -> Option<Stream> {
        tokio::spawn(serve(Arc::clone(&self.proxy), self.patience, io, stop.clone()));
        None
    }
}

async fn serve(proxy: Arc<Proxy>, patience: Seconds, io: Stream, mut stop: ShutdownWatch) {
    let first = tokio::time::timeout(patience.to_duration(), preface::version(io));
    let first = tokio::select! {
        first = first => first,
        _ = stop.changed() => return,
    };
    match first {
        Ok(Ok((Version::Http1, io))) => http1::serve(proxy, patience, io, stop).await,
        // Boxed, or every connection would keep room for it.
        Ok(Ok((Version::Http2, io))) => Box::pin(http2::serve(proxy, io, stop)).await,
        // A client that sent nothing, or left, asked for nothing.
        Ok(Err(_)) | Err(_) => {}
    }
}
