//! Reads certificate chains with their private keys, and certificate authorities, from PEM files.

use std::path::{Path, PathBuf};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::TlsError;
use crate::runtime::clock::Clock;

/// A certificate chain and the private key of its first certificate.
#[derive(Debug)]
pub struct Pair {
    /// The first certificate is the server's or the client's own.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// Reads a pair and verifies that the key matches the certificate. An expired certificate is logged
/// as a warning and used: its replacement is loaded when the file changes.
///
/// # Errors
/// [`TlsError`], which names the file.
pub fn read_pair(cert: &Path, key: &Path) -> Result<Pair, TlsError> {
    let chain = read_chain(cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(unread(key))?;
    CertifiedKey::from_der(chain.clone(), private.clone_key(), &ring::default_provider())
        .map_err(|source| TlsError::Pair { cert: cert.into(), key: key.into(), source })?;
    Ok(Pair { chain, key: private })
}

/// Reads the certificate authorities that peer certificates are verified against.
///
/// # Errors
/// [`TlsError`], which names the file.
pub fn read_authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_chain(path)? {
        let added = roots.add(certificate);
        added.map_err(|source| TlsError::Refused { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

fn unread(path: &Path) -> impl Fn(tokio_rustls::rustls::pki_types::pem::Error) -> TlsError {
    let path: PathBuf = path.to_owned();
    move |source| TlsError::Read { path: path.clone(), source }
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(unread(path))?.collect();
    let chain = chain.map_err(unread(path))?;
    if chain.is_empty() {
        return Err(TlsError::Empty(path.to_owned()));
    }
    let clock = Clock::start();
    let now = clock.wall(clock.now()) as i64;
    for (i, der) in chain.iter().enumerate() {
        let (_, parsed) = X509Certificate::from_der(der).map_err(|error| {
            let (path, problem) = (path.to_owned(), error.to_string());
            TlsError::Certificate { path, position: i + 1, problem }
        })?;
        let validity = parsed.validity();
        let (file, subject) = (path.display(), parsed.subject());
        if validity.not_after.timestamp() < now {
            let since = validity.not_after;
            tracing::warn!(%file, %subject, "the certificate has expired: {since}");
        } else if validity.not_before.timestamp() > now {
            let from = validity.not_before;
            tracing::warn!(%file, %subject, "the certificate is not valid yet: {from}");
        }
    }
    Ok(chain)
}
