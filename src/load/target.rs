//! The server under load and the API path used.

use http::{HeaderValue, Uri};
use std::fmt;
use thiserror::Error;
use tidegate_engine::Endpoint;

/// Base URL of a server; plain HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    authority: String,
    chat: bool,
    authorization: Option<HeaderValue>,
}

/// Invalid URL or API key.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TargetError {
    /// The URL is not of the form `http://host:port`.
    #[error("{0:?} is not a valid target: expected http://host:port")]
    Url(String),
    /// The key has characters that a header cannot contain.
    #[error("the API key has characters that a header cannot contain")]
    Key,
}

impl Target {
    /// Parses `http://host:port`. Requests go to `/v1/chat/completions`.
    ///
    /// # Errors
    /// Any other form.
    pub fn parse(url: &str) -> Result<Target, TargetError> {
        let error = || TargetError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| error())?;
        let http = uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/");
        let authority = uri.authority().filter(|_| http).ok_or_else(error)?;
        let port = authority.port_u16().unwrap_or(80);
        let authority = format!("{}:{port}", authority.host());
        Ok(Target { authority, chat: true, authorization: None })
    }

    /// Returns the same server with requests to `/v1/completions`.
    #[must_use]
    pub fn completions(self) -> Target {
        Target { chat: false, ..self }
    }

    /// Returns the same server with `Authorization: Bearer key`.
    ///
    /// # Errors
    /// The key has characters that a header cannot contain.
    pub fn with_key(self, key: &str) -> Result<Target, TargetError> {
        let mut value =
            HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| TargetError::Key)?;
        value.set_sensitive(true);
        Ok(Target { authorization: Some(value), ..self })
    }

    /// Returns `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub(crate) fn is_chat(&self) -> bool {
        self.chat
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        if self.chat { Endpoint::ChatCompletions } else { Endpoint::Completions }
    }

    pub(crate) fn path(&self) -> &'static str {
        if self.chat { "/v1/chat/completions" } else { "/v1/completions" }
    }

    pub(crate) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
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
    fn a_target_is_an_http_base_url_without_a_path() {
        assert_eq!(Target::parse("http://localhost:8080/").unwrap().authority(), "localhost:8080");
        assert_eq!(Target::parse("http://a").unwrap().authority(), "a:80");
        assert_eq!(Target::parse("http://[::1]:7").unwrap().authority(), "[::1]:7");
        for bad in ["https://a", "a:80", "http://a/v1", ""] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Target::parse("http://a").unwrap().with_key("a\nb"), Err(TargetError::Key));
    }
}
