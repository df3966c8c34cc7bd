//! HTTP client that exposes status, headers and each chunk as received.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Time limit of any operation in these tests.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Complete answer.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// Connection with one answer; dropping it closes the connection.
pub struct Open {
    pub response: Response<Incoming>,
    driver: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Open {
    /// Returns the next chunk; `None` at the end of the body.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame = within(self.response.body_mut().frame()).await?;
            match frame.map(|frame| frame.into_data()) {
                Ok(Ok(data)) => return Some(Ok(data)),
                Ok(Err(_)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Bounds a future by the time limit; a timeout fails the test.
pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.expect("the time limit of an operation expired")
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting)
        .await
        .unwrap_or_else(|_| panic!("not within the time limit: {what}"));
}

pub fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path)
        .header("host", "test")
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "test").body(Full::default()).unwrap()
}

/// Sends a request on its own connection and waits for the response head.
pub async fn open(to: SocketAddr, request: Request<Full<Bytes>>) -> Result<Open, hyper::Error> {
    let stream = within(TcpStream::connect(to)).await.expect("a listener");
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(async move { drop(connection.await) });
    let response = within(sender.send_request(request)).await?;
    Ok(Open { response, driver })
}

/// Sends a request and reads the whole answer.
pub async fn send(to: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let mut open = open(to, request).await.expect("an answer");
    let mut body = Vec::new();
    while let Some(chunk) = open.chunk().await {
        body.extend_from_slice(&chunk.expect("the body is whole"));
    }
    let (status, headers) = (open.response.status(), open.response.headers().clone());
    Answer { status, headers, body: String::from_utf8(body).unwrap() }
}

/// Returns an HTTP/2 client with a zero stream window, so that no response body can be sent to it,
/// and the task that drives its connection.
pub async fn h2_without_window(
    to: SocketAddr,
) -> (http2::SendRequest<Full<Bytes>>, JoinHandle<()>) {
    let stream = TcpStream::connect(to).await.unwrap();
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    (sender, tokio::spawn(async move { drop(connection.await) }))
}

/// Sends a request whose client can disconnect at any time: dropping or aborting the task closes
/// its socket.
pub fn leave_later(to: SocketAddr, request: Request<Full<Bytes>>) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Ok(mut open) = open(to, request).await {
            while let Some(Ok(_)) = open.chunk().await {}
        }
    })
}
