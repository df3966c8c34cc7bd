//! Certificates generated during the tests.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Certificate authority, with its certificate in a file.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    pub file: PathBuf,
}

/// Certificate and private key, in files.
pub struct Leaf {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(directory: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let file = directory.join(format!("{name}.pem"));
        std::fs::write(&file, &pem).unwrap();
        Authority { issuer: Issuer::new(params, key), pem, file }
    }

    /// Issues a loopback certificate as `file.crt` and `file.key`, with this common name.
    pub fn leaf(&self, directory: &Path, file: &str, name: &str) -> Leaf {
        self.leaf_until(directory, file, name, 4096)
    }

    /// Issues a certificate that is valid to the end of this year.
    pub fn leaf_until(&self, directory: &Path, file: &str, name: &str, year: i32) -> Leaf {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let leaf = Leaf {
            cert: directory.join(format!("{file}.crt")),
            key: directory.join(format!("{file}.key")),
        };
        std::fs::write(&leaf.cert, pem).unwrap();
        std::fs::write(&leaf.key, key.serialize_pem()).unwrap();
        leaf
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        roots
    }

    /// Returns a client that trusts this authority and presents `leaf`.
    pub fn client(&self, leaf: Option<&Leaf>, alpn: &[&str]) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match leaf {
            Some(leaf) => builder.with_client_auth_cert(leaf.chain(), leaf.private()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// Returns an engine's configuration that presents `leaf` and requires a certificate of this
    /// authority.
    pub fn server(&self, leaf: &Leaf, is_required: bool) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match is_required {
            true => {
                let roots = Arc::new(self.roots());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
            false => builder.with_no_client_auth(),
        };
        Arc::new(builder.with_single_cert(leaf.chain(), leaf.private()).unwrap())
    }
}

impl Leaf {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(&self.cert).unwrap().map(Result::unwrap).collect()
    }

    fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(&self.key).unwrap()
    }

    /// Replaces this certificate and key by another pair, as a renewal does.
    pub fn replace(&self, other: &Leaf) {
        std::fs::rename(&other.cert, &self.cert).unwrap();
        std::fs::rename(&other.key, &self.key).unwrap();
    }

    /// Formats the paths as lines of a `[*.tls]` section.
    pub fn toml(&self) -> String {
        format!("cert = \"{}\"\nkey = \"{}\"\n", self.cert.display(), self.key.display())
    }
}
