//! TLS towards clients: the certificate of one listener, and its requirements on client
//! certificates.

use std::sync::Arc;
use tidegate_settings::{ClientAuth, TlsSettings};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::server::TlsStream;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::{Pair, TlsError, read_authorities, read_pair};
use crate::runtime::reloadable::Reloadable;

/// The TLS configuration in force. Open connections keep the one they started with.
#[derive(Clone)]
pub struct ServerTls(Arc<Reloadable<ServerConfig, TlsError>>);

impl ServerTls {
    /// Loads and verifies the files named in `tls`. `alpn`: the protocols offered.
    ///
    /// # Errors
    /// [`TlsError`], which names the file.
    pub fn load(
        section: &str,
        tls: &TlsSettings,
        alpn: &'static [&'static [u8]],
    ) -> Result<ServerTls, TlsError> {
        let mut files = vec![tls.cert.clone(), tls.key.clone()];
        files.extend(tls.client_ca_file.clone());
        let tls = tls.clone();
        let load = move |_: Option<&ServerConfig>| config(&tls, alpn);
        Ok(ServerTls(Arc::new(Reloadable::load(section.to_owned(), files, Box::new(load))?)))
    }

    /// Returns the reloadable configuration.
    pub fn watched(&self) -> Arc<Reloadable<ServerConfig, TlsError>> {
        Arc::clone(&self.0)
    }

    /// Performs the server's side of a handshake.
    ///
    /// # Errors
    /// The client violates the protocol, its certificate is refused, or the connection breaks.
    pub async fn accept(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.current()).accept(socket).await
    }
}

fn config(tls: &TlsSettings, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let Pair { chain, key } = read_pair(&tls.cert, &tls.key)?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?;
    let builder = match client_verifier(tls)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|source| TlsError::Pair {
        cert: tls.cert.clone(),
        key: tls.key.clone(),
        source,
    })?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

fn client_verifier(tls: &TlsSettings) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let Some(path) = &tls.client_ca_file else { return Ok(None) };
    let roots = Arc::new(read_authorities(path)?);
    let provider = Arc::new(ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
    let builder = match tls.client_auth {
        ClientAuth::Required => builder,
        ClientAuth::Optional => builder.allow_unauthenticated(),
    };
    let verifier = builder.build();
    verifier.map(Some).map_err(|source| TlsError::Verifier { path: path.clone(), source })
}

/// Returns the subject of a verified client certificate, for the access log.
pub fn subject_of(chain: Option<&[CertificateDer<'_>]>) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(chain?.first()?).ok()?;
    Some(certificate.subject().to_string().into())
}
