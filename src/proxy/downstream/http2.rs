//! HTTP/2, with prior knowledge or after TLS: hyper's codec.

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pingora_core::server::ShutdownWatch;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::service::Proxy;
use crate::{intake, request};

/// Serve a connection until its client or the proxy ends it.
pub async fn serve<Io>(proxy: Arc<Proxy>, io: Io, mut stop: ShutdownWatch)
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |incoming: http::Request<Incoming>| {
        let proxy = Arc::clone(&proxy);
        async move {
            let (head, body) = incoming.into_parts();
            let asked = intake::read(&proxy, head, body).await;
            Ok::<_, Infallible>(request::handle(proxy, asked).await)
        }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new());
    let mut serving = pin!(builder.serve_connection(TokioIo::new(io), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        _ = stop.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // A client that leaves in the middle ends here: the access log has its request.
        tracing::debug!("client connection: {error}");
    }
}
