//! Requests to the API server: HTTP/1.1, one connection each.

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::time::Duration;
use thiserror::Error;
use tidegate_types::Seconds;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::access::{Access, AccessError};
use crate::event::KubeStatus;

/// Longest time for a connection with its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time until the head of an answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time for the body of a list.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest body of a list page, in bytes: 500 pods of 64 KiB and more.
const BODY_MAX: usize = 64 << 20;
/// Largest event of a watch, in bytes: etcd holds no object above 1.5 MiB.
const EVENT_MAX: usize = 8 << 20;
/// Largest `Status` of an error, in bytes.
const STATUS_MAX: usize = 64 << 10;
/// TCP keepalive: a watch whose server is unreachable ends after 30 s.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// A request to the API server failed.
#[derive(Debug, Error)]
pub enum KubeApiError {
    /// Credentials.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The connection.
    #[error("connection to the API server: {0}")]
    Io(#[from] io::Error),
    /// HTTP.
    #[error("HTTP with the API server: {0}")]
    Http(#[from] hyper::Error),
    /// No answer in time.
    #[error("no answer of the API server within {0:?}")]
    Late(Duration),
    /// An answer above the limit.
    #[error("an answer of the API server is larger than {0} bytes")]
    Large(usize),
    /// An answer that cannot be parsed.
    #[error("an answer of the API server cannot be parsed: {0}")]
    Json(#[from] serde_json::Error),
    /// A path or name that cannot be requested.
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
    /// The server's refusal.
    #[error("the API server answers {code}: {message}")]
    Status {
        /// HTTP status, or the `code` of an ERROR event.
        code: u16,
        /// Its message.
        message: String,
        /// Its `Retry-After`.
        retry_after: Option<Seconds>,
    },
    /// A watch that ended at once.
    #[error("the API server ended the watch at once")]
    Short,
}

impl KubeApiError {
    /// Returns the server's `Retry-After`.
    pub fn retry_after(&self) -> Option<Seconds> {
        match self {
            KubeApiError::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Returns whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, KubeApiError::Status { code: 404, .. })
    }

    /// Returns whether the resourceVersion of a watch or of a list's next page has expired.
    pub fn is_gone(&self) -> bool {
        matches!(self, KubeApiError::Status { code: crate::objects::GONE, .. })
    }
}

/// The answer of one request; its connection ends when it is dropped.
pub struct KubeResponse {
    body: Incoming,
    driver: JoinHandle<()>,
    /// Bytes of the next line.
    rest: BytesMut,
    /// Bytes of `rest` that hold no line break.
    searched: usize,
}

impl Drop for KubeResponse {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Sends `GET path_and_query`.
///
/// # Errors
/// [`KubeApiError`]; any status but 2xx is [`KubeApiError::Status`].
pub async fn get(access: &Access, path_and_query: &str) -> Result<KubeResponse, KubeApiError> {
    send(access, Method::GET, path_and_query, None).await
}

/// Sends a request with a body of a content type.
///
/// # Errors
/// [`KubeApiError`]; any status but 2xx is [`KubeApiError::Status`].
pub async fn send(
    access: &Access,
    method: Method,
    path_and_query: &str,
    body: Option<(&'static str, Bytes)>,
) -> Result<KubeResponse, KubeApiError> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{}{path_and_query}", access.prefix))
        .header(HOST, authority(access))
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")));
    if let Some(token) = access.authorization()? {
        request = request.header(AUTHORIZATION, token);
    }
    let body = match body {
        Some((kind, body)) => {
            request = request.header(CONTENT_TYPE, kind);
            body
        }
        None => Bytes::new(),
    };
    let request = request.body(Full::new(body))?;
    let exchange = async {
        let (mut sender, driver) = connect(access).await?;
        let response = timeout(HEAD_TIMEOUT, sender.send_request(request)).await;
        match response {
            Ok(Ok(response)) => Ok((response, driver)),
            Ok(Err(error)) => {
                driver.abort();
                Err(error.into())
            }
            Err(_) => {
                driver.abort();
                Err(KubeApiError::Late(HEAD_TIMEOUT))
            }
        }
    };
    let (response, driver) = exchange.await?;
    let (status, retry_after) = (response.status(), retry_after(&response));
    let body = response.into_body();
    let answer = KubeResponse { body, driver, rest: BytesMut::new(), searched: 0 };
    match status.is_success() {
        true => Ok(answer),
        false => Err(refused(answer, status, retry_after).await),
    }
}

type Sender = http1::SendRequest<Full<Bytes>>;

async fn connect(access: &Access) -> Result<(Sender, JoinHandle<()>), KubeApiError> {
    let connecting = async {
        let stream = TcpStream::connect((access.host.as_str(), access.port)).await?;
        stream.set_nodelay(true)?;
        let (idle, interval, retries) = KEEPALIVE;
        SockRef::from(&stream).set_tcp_keepalive(
            &TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries),
        )?;
        if !access.tls {
            return drive(stream).await;
        }
        let connector = TlsConnector::from(access.tls_config()?);
        let name = ServerName::try_from(access.host.clone()).map_err(io::Error::other)?;
        drive(connector.connect(name, stream).await?).await
    };
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(KubeApiError::Late(CONNECT_TIMEOUT)),
    }
}

async fn drive<S>(stream: S) -> Result<(Sender, JoinHandle<()>), KubeApiError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("connection to the API server: {error}");
        }
    });
    Ok((sender, driver))
}

fn authority(access: &Access) -> String {
    match access.host.contains(':') {
        true => format!("[{}]:{}", access.host, access.port),
        false => format!("{}:{}", access.host, access.port),
    }
}

fn retry_after(response: &Response<Incoming>) -> Option<Seconds> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse::<u32>().ok().map(|seconds| Seconds(f64::from(seconds)))
}

async fn refused(
    answer: KubeResponse,
    code: StatusCode,
    retry_after: Option<Seconds>,
) -> KubeApiError {
    let body = answer.read_all(STATUS_MAX, HEAD_TIMEOUT).await.unwrap_or_default();
    let status: KubeStatus = serde_json::from_slice(&body).unwrap_or_default();
    let asked = status.details.retry_after_seconds.map(|seconds| Seconds(f64::from(seconds)));
    let message = match status.message.is_empty() {
        true => code.canonical_reason().unwrap_or_default().to_owned(),
        false => status.message,
    };
    KubeApiError::Status { code: code.as_u16(), message, retry_after: retry_after.or(asked) }
}

impl KubeResponse {
    /// Reads a list's body.
    ///
    /// # Errors
    /// [`KubeApiError`] when it breaks, is late or too large.
    pub async fn read_list(self) -> Result<Bytes, KubeApiError> {
        self.read_all(BODY_MAX, BODY_TIMEOUT).await
    }

    async fn read_all(mut self, max: usize, limit: Duration) -> Result<Bytes, KubeApiError> {
        let reading = async {
            while let Some(frame) = self.body.frame().await {
                let Ok(data) = frame?.into_data() else { continue };
                if self.rest.len() + data.len() > max {
                    return Err(KubeApiError::Large(max));
                }
                self.rest.extend_from_slice(&data);
            }
            Ok(std::mem::take(&mut self.rest).freeze())
        };
        timeout(limit, reading).await.unwrap_or(Err(KubeApiError::Late(limit)))
    }

    /// Reads the next line of a watch; `None` at its end. Cancel-safe.
    ///
    /// # Errors
    /// [`KubeApiError`] when the connection breaks or a line is too long.
    pub async fn next_line(&mut self) -> Result<Option<Bytes>, KubeApiError> {
        loop {
            if let Some(end) = self.rest[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(self.searched + end + 1).freeze();
                self.searched = 0;
                if line.len() > 1 {
                    return Ok(Some(line));
                }
                continue;
            }
            self.searched = self.rest.len();
            if self.searched > EVENT_MAX {
                return Err(KubeApiError::Large(EVENT_MAX));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame?.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}
