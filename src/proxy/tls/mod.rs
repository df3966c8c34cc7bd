//! TLS with rustls: loads and verifies certificates at start-up and in `tidegate check`, and reloads
//! them when their files change (`runtime/reloadable.rs`).

mod pair;
mod server;

pub use pair::{Pair, read_authorities, read_pair};
pub use server::{ServerTls, subject_of};

use std::path::PathBuf;
use thiserror::Error;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem;
use tokio_rustls::rustls::server::VerifierBuilderError;

/// Why a certificate, its key or an authority cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: pem::Error },
    /// The file holds no certificate.
    #[error("{0} holds no certificate in PEM form")]
    Empty(PathBuf),
    /// rustls refuses a certificate of an authority.
    #[error("{path}: {source}")]
    Refused { path: PathBuf, source: rustls::Error },
    /// A PEM block of the chain is not an X.509 certificate.
    #[error("{path}: certificate {position} of the chain cannot be parsed: {problem}")]
    Certificate {
        path: PathBuf,
        /// Its position in the chain, from 1.
        position: usize,
        problem: String,
    },
    /// rustls refuses the pair: an unknown key type, or a key that does not match the certificate.
    #[error("{cert} and {key} cannot be used together: {source}")]
    Pair { cert: PathBuf, key: PathBuf, source: rustls::Error },
    /// Client certificates cannot be verified against these authorities.
    #[error("{path}: {source}")]
    Verifier { path: PathBuf, source: VerifierBuilderError },
    /// An https backend needs a CA file: tidegate trusts no built-in authorities.
    #[error("an https backend needs upstream.ca_file")]
    NoAuthorities,
    /// No protocol version is left to offer.
    #[error("TLS cannot be configured: {0}")]
    Versions(rustls::Error),
}
