//! TLS to engines that are reached by https.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// Why the certificate authorities for a backend cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// The file holds no usable certificate.
    #[error("{0} holds no certificate in PEM form")]
    Empty(PathBuf),
    /// rustls refuses a certificate.
    #[error("{path}: {source}")]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// An https backend needs a CA file: tidegate trusts no built-in authorities.
    #[error("an https backend needs upstream.ca_file")]
    NoAuthorities,
}

/// Opens TLS to a backend and checks its certificate against the operator's authorities.
#[derive(Clone)]
pub struct Connector(Arc<ClientConfig>);

/// A connector that trusts the certificates in `ca_file`.
///
/// # Errors
/// [`TlsError`] when there is no file or nothing usable in it.
pub fn client_config(ca_file: Option<&Path>) -> Result<Connector, TlsError> {
    let path = ca_file.ok_or(TlsError::NoAuthorities)?;
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(read)? {
        let added = roots.add(certificate.map_err(read)?);
        added.map_err(|source| TlsError::Refused { path: path.to_owned(), source })?;
    }
    if roots.is_empty() {
        return Err(TlsError::Empty(path.to_owned()));
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Connector(Arc::new(config)))
}

impl Connector {
    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await
    }
}
