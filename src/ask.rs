//! HTTP client of the command line for engines: one connection a request, bounded in time and size.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HOST};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, crypto::ring};

/// Largest accepted answer, in bytes.
const ANSWER_MAX: usize = 8 << 20;

/// Failure of a request to an engine.
#[derive(Debug, Error)]
pub enum AskError {
    /// The URL is not that of an engine.
    #[error("{0:?} is not an engine URL: expected http://host:port or https://host:port")]
    Url(String),
    /// No certificate authorities are configured to verify an https engine.
    #[error("an https engine needs --ca-file, or [upstream] ca_file")]
    NoAuthorities,
    /// The connection failed.
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    /// The exchange ended early.
    #[error("the answer is incomplete: {0}")]
    Broken(String),
    /// The time-out expired.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Late(Duration),
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    pub status: StatusCode,
    pub body: Bytes,
    /// The answer's `date` header.
    pub date: Option<String>,
    pub took: Duration,
}

/// Credentials and limits of the requests to engines.
#[derive(Clone)]
pub struct Client {
    timeout: Duration,
    key: Option<String>,
    tls: Option<TlsConnector>,
    name: Option<String>,
}

impl Client {
    /// Creates a client with this time-out per request.
    pub fn new(timeout: Duration) -> Client {
        Client { timeout, key: None, tls: None, name: None }
    }

    /// Sets the API key that is sent to engines.
    #[must_use]
    pub fn with_key(self, key: Option<String>) -> Client {
        Client { key, ..self }
    }

    /// Verifies https engines with the authorities of a PEM file, against `name` if given.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn with_authorities(self, path: &Path, name: Option<String>) -> Result<Client, String> {
        let config = verified_by(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Client { tls: Some(TlsConnector::from(Arc::new(config))), name, ..self })
    }

    /// `GET path` at the engine with this base URL.
    ///
    /// # Errors
    /// [`AskError`] without an answer.
    pub async fn get(&self, url: &str, path: &str) -> Result<HttpAnswer, AskError> {
        self.ask(Method::GET, url, path, Bytes::new(), None).await
    }

    /// `POST path` with a JSON body and an optional additional header.
    ///
    /// # Errors
    /// [`AskError`] without an answer.
    pub async fn post(
        &self,
        url: &str,
        path: &str,
        body: Bytes,
        header: Option<(&str, &str)>,
    ) -> Result<HttpAnswer, AskError> {
        self.ask(Method::POST, url, path, body, header).await
    }

    async fn ask(
        &self,
        method: Method,
        url: &str,
        path: &str,
        body: Bytes,
        header: Option<(&str, &str)>,
    ) -> Result<HttpAnswer, AskError> {
        let began = Instant::now();
        let exchange = async {
            let (authority, tls, prefix) = parts(url)?;
            let host = authority.host().trim_matches(['[', ']']).to_owned();
            let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
            let mut request = Request::builder()
                .method(method)
                .uri(format!("{prefix}{path}"))
                .header(HOST, authority.as_str())
                .header(CONTENT_TYPE, "application/json");
            if let Some(key) = &self.key {
                request = request.header(AUTHORIZATION, format!("Bearer {key}"));
            }
            if let Some((name, value)) = header {
                request = request.header(name, value);
            }
            let request = request.body(Full::new(body));
            let request = request.map_err(|_| AskError::Url(url.to_owned()))?;
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            if !tls {
                return sent(stream, request).await;
            }
            let connector = self.tls.as_ref().ok_or(AskError::NoAuthorities)?;
            let name = ServerName::try_from(self.name.clone().unwrap_or(host));
            let name = name.map_err(|_| AskError::Url(url.to_owned()))?;
            sent(connector.connect(name, stream).await?, request).await
        };
        let answer = tokio::time::timeout(self.timeout, exchange).await;
        let answer = answer.map_err(|_| AskError::Late(self.timeout))??;
        Ok(HttpAnswer { took: began.elapsed(), ..answer })
    }
}

/// Returns a TLS configuration that verifies servers with the authorities of a PEM file.
///
/// # Errors
/// The file cannot be used; the message does not name it.
pub fn verified_by(path: &Path) -> Result<ClientConfig, String> {
    let roots = tidegate_proxy::files::authorities(path).map_err(|error| error.to_string())?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Returns the authority, whether TLS is used, and the path prefix.
fn parts(url: &str) -> Result<(http::uri::Authority, bool, String), AskError> {
    let wrong = || AskError::Url(url.to_owned());
    // The same check as that of a configuration.
    tidegate_settings::check_base_url(url).map_err(|_| wrong())?;
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let tls = uri.scheme_str() == Some("https");
    let authority = uri.authority().ok_or_else(wrong)?.clone();
    Ok((authority, tls, uri.path().trim_end_matches('/').to_owned()))
}

/// Reads an engine's URL of the command line.
///
/// # Errors
/// It is not the URL of an engine.
pub fn engine_url(text: &str) -> Result<String, String> {
    match tidegate_settings::check_base_url(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(problem) => Err(format!("{problem}: expected http://host:port or https://host:port")),
    }
}

/// Returns the host of an engine's URL; IPv6 in brackets.
///
/// # Errors
/// The URL is not that of an engine.
pub fn host_of(url: &str) -> Result<String, AskError> {
    parts(url).map(|(authority, ..)| authority.host().to_owned())
}

async fn sent(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<HttpAnswer, AskError> {
    let broken = |error: &dyn std::fmt::Display| AskError::Broken(error.to_string());
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    // The connection ends with the sender, or with an error that the sender reports.
    let driver = tokio::spawn(async move { drop(connection.await) });
    let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(|error| broken(&error));
    driver.abort();
    let date = head.headers.get(DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
    let body = body?.to_bytes();
    Ok(HttpAnswer { status: head.status, body, date, took: Duration::ZERO })
}
