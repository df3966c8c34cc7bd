//! Address of a backend: scheme, host, port and path prefix of its base URL.

use http::header::InvalidHeaderValue;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Uri};
use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use thiserror::Error;

/// A backend's base URL, parsed once at start-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Whether the scheme is `https`.
    pub tls: bool,
    /// Host name or IP literal, IPv6 without brackets.
    pub host: String,
    /// Fixed address; `None`: the host name is resolved for each connection.
    pub ip: Option<IpAddr>,
    pub port: u16,
    /// Value of the `host` header.
    pub authority: Authority,
    /// `authorization` of every request, which replaces the client's.
    pub key: Option<HeaderValue>,
    /// Path prefix: empty, or without a slash at its end.
    pub prefix: String,
}

/// Invalid base URL.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{url:?} is not a backend address: {problem}")]
pub struct AddressError {
    pub url: String,
    pub problem: &'static str,
}

impl Address {
    /// Parses `http://host:port` or `https://host:port`, with an optional path prefix.
    ///
    /// # Errors
    /// Anything but an absolute http(s) URL without a query.
    pub fn parse(url: &str) -> Result<Address, AddressError> {
        let error = |problem| AddressError { url: url.to_owned(), problem };
        let uri: Uri = url.parse().map_err(|_| error("not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(error("the scheme must be http or https")),
        };
        let authority = uri.authority().ok_or_else(|| error("no host"))?.clone();
        if uri.query().is_some() {
            return Err(error("a query is not supported"));
        }
        let prefix = uri.path().trim_end_matches('/').to_owned();
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let ip = host.parse().ok();
        Ok(Address { tls, host, ip, port, authority, key: None, prefix })
    }

    /// Sets the engine's API key. `None` if the key has characters that a header cannot contain.
    pub fn with_key(mut self, key: &str) -> Option<Address> {
        self.key = Some(bearer(key).ok()?);
        Some(self)
    }

    /// Returns the request target on this backend, with the path prefix.
    pub fn target<'t>(&self, target: &'t PathAndQuery) -> Cow<'t, PathAndQuery> {
        if self.prefix.is_empty() {
            return Cow::Borrowed(target);
        }
        let whole = format!("{}{target}", self.prefix);
        // The concatenation of two valid paths is valid.
        PathAndQuery::try_from(whole).map_or(Cow::Borrowed(target), Cow::Owned)
    }
}

/// Returns the value of `authorization` with a bearer token, marked as sensitive.
///
/// # Errors
/// The token has characters that a header cannot contain.
pub fn bearer(token: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_scheme_host_port_and_prefix() {
        let plain = Address::parse("http://127.0.0.1:8000").unwrap();
        assert_eq!((plain.tls, plain.host.as_str(), plain.port), (false, "127.0.0.1", 8000));
        assert_eq!((plain.ip, plain.prefix.as_str()), ("127.0.0.1".parse().ok(), ""));
        let v6 = Address::parse("https://[::1]/").unwrap();
        assert_eq!((v6.tls, v6.host.as_str(), v6.port), (true, "::1", 443));
        let prefixed = Address::parse("http://x:1/a/v2/").unwrap();
        assert_eq!((prefixed.prefix.as_str(), prefixed.ip), ("/a/v2", None));
        for (target, whole) in
            [("/v1/models?a=b", "/a/v2/v1/models?a=b"), ("/health", "/a/v2/health")]
        {
            assert_eq!(*prefixed.target(&PathAndQuery::from_static(target)), whole);
            assert_eq!(*plain.target(&PathAndQuery::from_static(target)), target);
        }
        for bad in ["127.0.0.1:8000", "ftp://x:1", "http://x:1/?a", "http://"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
