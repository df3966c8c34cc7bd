//! A client's connection: pingora accepts it and, if so configured, terminates TLS; hyper's codec
//! speaks HTTP/1.1 or h2 on it, told apart by the first bytes (preface.rs).

use async_trait::async_trait;
use http::Response;
use http::header::{CONNECTION, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use tidegate_terms::Seconds;

use crate::preface::{self, Version};
use crate::relay::RelayBody;
use crate::request;
use crate::service::Proxy;

/// Serves the data port.
pub struct DataApp {
    /// What all requests share.
    pub proxy: Arc<Proxy>,
    /// How long a client may take to send its header, and to send the next request.
    pub header_timeout: Seconds,
}

#[async_trait]
impl ServerApp for DataApp {
    /// Takes the connection over into a task of its own: pingora's keeps room for a TLS handshake
    /// as long as it lives, 9 KB that a stream does not need.
    async fn process_new(self: &Arc<Self>, io: Stream, stop: &ShutdownWatch) -> Option<Stream> {
        tokio::spawn(serve(Arc::clone(&self.proxy), self.header_timeout, io, stop.clone()));
        None
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<RelayBody>, Infallible>> + Send>>;

async fn serve(proxy: Arc<Proxy>, header_timeout: Seconds, io: Stream, mut stop: ShutdownWatch) {
    let first = tokio::time::timeout(header_timeout.to_duration(), preface::version(io));
    let first = tokio::select! {
        first = first => first,
        _ = stop.changed() => return,
    };
    // A client that sent nothing, or left, asked for nothing.
    let Ok(Ok((version, io))) = first else { return };
    let service = service_fn(move |incoming| {
        let proxy = Arc::clone(&proxy);
        // Boxed: hyper keeps room for the future as long as the connection lives, 5 KB that a
        // stream does not need.
        let answering: Answering = Box::pin(async move {
            let draining = Arc::clone(&proxy);
            let mut response = request::handle(proxy, incoming).await;
            if draining.is_draining() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Ok(response)
        });
        answering
    });
    let io = TokioIo::new(io);
    let ended = match version {
        Version::Http1 => {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(header_timeout.to_duration());
            let mut serving = pin!(builder.serve_connection(io, service));
            tokio::select! {
                ended = serving.as_mut() => ended,
                _ = stop.changed() => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            }
        }
        Version::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new());
            // Boxed, or every connection would keep room for it.
            let mut serving = Box::pin(builder.serve_connection(io, service));
            tokio::select! {
                ended = serving.as_mut() => ended,
                _ = stop.changed() => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            }
        }
    };
    if let Err(error) = ended {
        // A client that leaves in the middle ends here: the access log has its request.
        tracing::debug!("client connection: {error}");
    }
}
