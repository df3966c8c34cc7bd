//! TLS to engines with an https URL.

use std::path::PathBuf;
use std::sync::Arc;
use tidegate_settings::{TlsSettings, UpstreamSettings};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::runtime::reloadable::Reloadable;
use crate::tls::{Pair, TlsError, read_authorities, read_pair};

/// Opens TLS to a backend and verifies its certificate against the operator's authorities.
#[derive(Clone)]
pub struct EngineTls {
    config: Arc<Reloadable<ClientConfig, TlsError>>,
    /// Expected name in the certificate, if it differs from the URL's host.
    name: Option<String>,
}

impl EngineTls {
    /// Loads the certificate authorities and tidegate's client certificate.
    ///
    /// # Errors
    /// [`TlsError`], which names the file.
    pub fn load(upstream: &UpstreamSettings) -> Result<EngineTls, TlsError> {
        let UpstreamSettings { ca_file, client_cert, client_key, .. } = upstream;
        EngineTls::of("upstream", [ca_file, client_cert, client_key].map(Clone::clone))
    }

    /// Loads the files of a listener as those of a client: the other side has the same ones.
    ///
    /// # Errors
    /// [`TlsError`], which names the file.
    pub fn among_peers(section: &str, tls: &TlsSettings) -> Result<EngineTls, TlsError> {
        let TlsSettings { cert, key, client_ca_file, .. } = tls.clone();
        EngineTls::of(section, [client_ca_file, Some(cert), Some(key)])
    }

    /// `files`: certificate authorities, client certificate and its key.
    fn of(section: &str, files: [Option<PathBuf>; 3]) -> Result<EngineTls, TlsError> {
        let all = files.iter().flatten().cloned().collect();
        let load = Box::new(move |_: Option<&ClientConfig>| client_config(&files));
        let config = Arc::new(Reloadable::load(section.to_owned(), all, load)?);
        Ok(EngineTls { config, name: None })
    }

    /// Returns a connector that expects this name in the certificate.
    #[must_use]
    pub fn named(&self, name: Option<&str>) -> EngineTls {
        EngineTls { config: Arc::clone(&self.config), name: name.map(str::to_owned) }
    }

    /// The configuration that is reloaded when its files change.
    pub fn watched(&self) -> Arc<Reloadable<ClientConfig, TlsError>> {
        Arc::clone(&self.config)
    }

    /// Performs the client's side of a handshake with `host`.
    ///
    /// # Errors
    /// The server's certificate is refused, or the connection breaks.
    pub(crate) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let name = self.name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
        TlsConnector::from(self.config.current()).connect(name, stream).await
    }
}

fn client_config(files: &[Option<PathBuf>; 3]) -> Result<ClientConfig, TlsError> {
    let [ca_file, client_cert, client_key] = files;
    let path = ca_file.as_deref().ok_or(TlsError::NoAuthorities)?;
    let roots = read_authorities(path)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?
        .with_root_certificates(roots);
    let (Some(cert), Some(key)) = (client_cert, client_key) else {
        return Ok(builder.with_no_client_auth());
    };
    let Pair { chain, key: private } = read_pair(cert, key)?;
    builder.with_client_auth_cert(chain, private).map_err(|source| TlsError::Pair {
        cert: cert.clone(),
        key: key.clone(),
        source,
    })
}
