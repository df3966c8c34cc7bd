//! Whom to load.

use http::Uri;
use std::fmt;
use thiserror::Error;

/// A server's base URL; plain HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `host:port`
    pub authority: String,
}

/// The URL is no target.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no target: give http://host:port")]
pub struct TargetError(pub String);

impl Target {
    /// Read `http://host:port`.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(url: &str) -> Result<Target, TargetError> {
        let error = || TargetError(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| error())?;
        let http = uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/");
        let authority = uri.authority().filter(|_| http).ok_or_else(error)?;
        let port = authority.port_u16().unwrap_or(80);
        Ok(Target { authority: format!("{}:{port}", authority.host()) })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_plain_base_url() {
        assert_eq!(Target::parse("http://localhost:8080/").unwrap().authority, "localhost:8080");
        assert_eq!(Target::parse("http://a").unwrap().authority, "a:80");
        for bad in ["https://a", "a:80", "http://a/v1", ""] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
