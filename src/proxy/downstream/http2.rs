//! HTTP/2, with prior knowledge or after TLS: hyper's codec.

use http::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use tidegate_engine::ApiError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::front::Client;
use crate::intake::{self, Asked};
use crate::request;
use crate::service::Proxy;

/// Serve a connection until its client or the proxy ends it.
pub async fn serve<Io>(proxy: Arc<Proxy>, client: Client, io: Io, mut stop: watch::Receiver<bool>)
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |incoming: Request<Incoming>| {
        let (proxy, subject) = (Arc::clone(&proxy), client.subject.clone());
        async move {
            let mut asked = read(&proxy, incoming).await;
            asked.subject = subject;
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

async fn read(proxy: &Proxy, incoming: Request<Incoming>) -> Asked {
    let arrived = proxy.clock.now();
    let (head, body) = incoming.into_parts();
    let body = match intake::admit_head(proxy, &head) {
        Err(error) => Err(error),
        Ok(()) => match Limited::new(body, proxy.body_max).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(ApiError::too_large(proxy.body_max))
            }
            Err(_) => Err(ApiError::bad_request("The request body could not be read.", None)),
        },
    };
    Asked { head, body, arrived, subject: None }
}
