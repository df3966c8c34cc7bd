//! Address and credentials of the API server: those of the service account in a pod, or those of
//! `[kubernetes]`. Files are read for each connection: tokens are replaced hourly, authorities rarely.

use http::HeaderValue;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tidegate_settings::KubernetesSettings;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// Directory of a pod's service account files.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How the API server is reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `false`: plain HTTP, as `kubectl proxy` serves it.
    pub tls: bool,
    /// Path prefix before `/api`; mostly empty.
    pub prefix: String,
    /// Namespace of the pod; `default` outside a cluster.
    pub namespace: String,
    ca_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
}

/// Why the API server cannot be reached.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The process is not in a cluster and the settings have no address.
    #[error("not in a cluster (KUBERNETES_SERVICE_HOST is not set): set kubernetes.api_server")]
    NoCluster,
    /// `api_server` or the environment holds no address.
    #[error("{0:?} is not the address of an API server")]
    Address(String),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file is not PEM.
    #[error("cannot read {path}: {source}")]
    Pem {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// A token that no header can carry.
    #[error("{0} holds no token")]
    Token(PathBuf),
    /// rustls refuses the authorities or the client certificate.
    #[error("TLS to the API server: {0}")]
    Tls(#[from] rustls::Error),
}

impl Access {
    /// Reads the settings; absent keys default to the environment of this process.
    ///
    /// # Errors
    /// [`AccessError`] without an address.
    pub fn of_process(settings: &KubernetesSettings) -> Result<Access, AccessError> {
        Access::new(settings, |name| std::env::var(name).ok())
    }

    /// Reads the settings; absent keys default to the pod's environment, read through `env`.
    ///
    /// # Errors
    /// [`AccessError`] without an address.
    pub fn new(
        settings: &KubernetesSettings,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Access, AccessError> {
        let account = |file: &str| Some(Path::new(ACCOUNT).join(file));
        let namespace = settings.namespace.clone();
        let Some(url) = &settings.api_server else {
            let host = env("KUBERNETES_SERVICE_HOST").ok_or(AccessError::NoCluster)?;
            let port = env("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
            let port = port.parse().map_err(|_| AccessError::Address(format!("{host}:{port}")))?;
            let own = std::fs::read_to_string(Path::new(ACCOUNT).join("namespace"));
            let own = own.map(|name| name.trim().to_owned()).ok();
            return Ok(Access {
                host,
                port,
                tls: true,
                prefix: String::new(),
                namespace: namespace.or(own).unwrap_or_else(|| "default".to_owned()),
                ca_file: settings.ca_file.clone().or_else(|| account("ca.crt")),
                token_file: settings.token_file.clone().or_else(|| account("token")),
                client: client(settings),
            });
        };
        let (tls, host, port, prefix) =
            parts(url).ok_or_else(|| AccessError::Address(url.clone()))?;
        Ok(Access {
            host,
            port,
            tls,
            prefix,
            namespace: namespace.unwrap_or_else(|| "default".to_owned()),
            ca_file: settings.ca_file.clone(),
            token_file: settings.token_file.clone(),
            client: client(settings),
        })
    }

    /// Returns the value of `authorization`; `None` without a token, and in clear text to another host.
    ///
    /// # Errors
    /// [`AccessError`] when the file cannot be read.
    pub fn authorization(&self) -> Result<Option<HeaderValue>, AccessError> {
        let is_local = self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let Some(path) = self.token_file.as_ref().filter(|_| self.tls || is_local) else {
            return Ok(None);
        };
        let token = std::fs::read_to_string(path)
            .map_err(|source| AccessError::Read { path: path.clone(), source })?;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
            .ok()
            .filter(|_| !token.trim().is_empty())
            .ok_or_else(|| AccessError::Token(path.clone()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Returns the TLS configuration.
    ///
    /// # Errors
    /// [`AccessError`] when a file cannot be read or used.
    pub fn tls_config(&self) -> Result<Arc<ClientConfig>, AccessError> {
        let mut roots = RootCertStore::empty();
        for certificate in
            self.ca_file.iter().map(|path| chain(path)).collect::<Result<Vec<_>, _>>()?
        {
            for certificate in certificate {
                roots.add(certificate)?;
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let Some((cert, key)) = &self.client else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|source| AccessError::Pem { path: key.clone(), source })?;
        Ok(Arc::new(builder.with_client_auth_cert(chain(cert)?, private)?))
    }
}

fn client(settings: &KubernetesSettings) -> Option<(PathBuf, PathBuf)> {
    settings.client_cert.clone().zip(settings.client_key.clone())
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let unread = |source| AccessError::Pem { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path).map_err(unread)?.collect::<Result<_, _>>().map_err(unread)
}

/// Scheme (is it https?), host, port and path of a URL.
fn parts(url: &str) -> Option<(bool, String, u16, String)> {
    let uri: http::Uri = url.parse().ok()?;
    let tls = match uri.scheme_str()? {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let authority = uri.authority()?;
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    (!host.is_empty()).then(|| (tls, host, port, uri.path().trim_end_matches('/').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_uses_its_service_account() {
        let env = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("6443".to_owned()),
            _ => None,
        };
        let access = Access::new(&KubernetesSettings::default(), env).unwrap();
        assert_eq!((access.host.as_str(), access.port, access.tls), ("fd00::1", 6443, true));
        assert_eq!(access.token_file, Some(Path::new(ACCOUNT).join("token")));
        let none = Access::new(&KubernetesSettings::default(), |_| None);
        assert!(matches!(none, Err(AccessError::NoCluster)));
    }

    #[test]
    fn an_address_in_the_settings_comes_first() {
        let url = |url: &str| KubernetesSettings {
            api_server: Some(url.to_owned()),
            namespace: Some("llm".to_owned()),
            ..KubernetesSettings::default()
        };
        let access = Access::new(&url("https://api.example/k8s/"), |_| None).unwrap();
        assert_eq!((access.port, access.prefix.as_str()), (443, "/k8s"));
        assert_eq!((access.namespace.as_str(), access.token_file), ("llm", None));
        for wrong in ["api.example", "ftp://a", "https://"] {
            assert!(Access::new(&url(wrong), |_| None).is_err(), "{wrong}");
        }
    }
}
