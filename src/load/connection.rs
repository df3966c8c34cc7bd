//! One HTTP/1.1 connection, driven by the request that uses it: no second task is woken for each
//! chunk, and dropping the body closes the socket. One request at a time uses a connection.

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use tokio::net::TcpStream;

/// Idle connection, or one in use by a request.
pub struct LoadConnection {
    sender: SendRequest<Full<Bytes>>,
    driver: Connection<TokioIo<TcpStream>, Full<Bytes>>,
}

impl LoadConnection {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn connect(authority: &str) -> std::io::Result<LoadConnection> {
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        let (sender, driver) =
            handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        Ok(LoadConnection { sender, driver })
    }

    /// Returns whether a kept connection is still open.
    pub fn is_open(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        Pin::new(&mut self.driver).poll(&mut context).is_pending() && self.sender.is_ready()
    }

    /// Sends a request; returns the response head.
    ///
    /// # Errors
    /// The connection failed, or was closed before a response.
    pub async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let LoadConnection { sender, driver } = self;
        let mut answer = pin!(sender.send_request(request));
        let mut over = false;
        poll_fn(|context| {
            if !over && let Poll::Ready(ended) = Pin::new(&mut *driver).poll(context) {
                over = true;
                ended?;
            }
            answer.as_mut().poll(context)
        })
        .await
    }

    /// Returns the next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn next(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
        loop {
            let frame: Option<Frame<Bytes>> = poll_fn(|context| {
                // Polled twice: polling for a frame makes the driver read one.
                for _ in 0..2 {
                    if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(context) {
                        return Poll::Ready(frame.transpose());
                    }
                    if let Poll::Ready(Err(error)) = Pin::new(&mut self.driver).poll(context) {
                        return Poll::Ready(Err(error));
                    }
                }
                Pin::new(&mut *body).poll_frame(context).map(Option::transpose)
            })
            .await?;
            match frame.map(Frame::into_data) {
                None => return Ok(None),
                Some(Ok(data)) => return Ok(Some(data)),
                // Trailers are ignored.
                Some(Err(_)) => {}
            }
        }
    }
}
