//! Where a backend listens: scheme, host and port out of its base URL.

use http::{HeaderValue, Uri, uri::Authority};
use std::fmt;
use thiserror::Error;

/// A backend's base URL, taken apart once at start-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `https`?
    pub tls: bool,
    /// Host name or IP literal, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// What goes into the `host` header.
    pub authority: Authority,
    /// `authorization` of every request to it, in place of a client's.
    pub key: Option<HeaderValue>,
}

/// The URL cannot be a backend's.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{url:?} is not a backend address: {problem}")]
pub struct AddressError {
    /// The URL as given.
    pub url: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Address {
    /// Take `http://host:port` or `https://host:port` apart.
    ///
    /// # Errors
    /// Anything but an absolute http(s) URL without a path.
    pub fn parse(url: &str) -> Result<Address, AddressError> {
        let error = |problem| AddressError { url: url.to_owned(), problem };
        let uri: Uri = url.parse().map_err(|_| error("not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(error("the scheme must be http or https")),
        };
        let authority = uri.authority().ok_or_else(|| error("no host"))?.clone();
        if !matches!(uri.path(), "" | "/") {
            return Err(error("a path is not supported, give scheme, host and port"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Address { tls, host, port, authority, key: None })
    }
}

impl Address {
    /// The same, where the engine wants its own API key. `None`: no header can carry it.
    pub fn with_key(mut self, key: &str) -> Option<Address> {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}")).ok()?;
        value.set_sensitive(true);
        self.key = Some(value);
        Some(self)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_scheme_host_and_port() {
        let plain = Address::parse("http://127.0.0.1:8000").unwrap();
        assert_eq!((plain.tls, plain.host.as_str(), plain.port), (false, "127.0.0.1", 8000));
        let v6 = Address::parse("https://[::1]/").unwrap();
        assert_eq!((v6.tls, v6.host.as_str(), v6.port), (true, "::1", 443));
        for bad in ["127.0.0.1:8000", "ftp://x:1", "http://x:1/v1", "http://"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
