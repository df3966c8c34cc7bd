//! Access control of the admin address. A browser on an operator's machine can reach loopback, so
//! requests from pages of other origins are refused: by `Host` (DNS rebinding), by `Origin` and
//! `Sec-Fetch-Site` (cross-site requests), and by the content type (HTML forms cannot send JSON).
//! Pure.

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use std::net::{Ipv4Addr, Ipv6Addr};
use subtle::ConstantTimeEq;

use super::dashboard;

/// The `[admin]` settings that control access.
#[derive(Default)]
pub struct Guard<'a> {
    /// Accepted bearer tokens; empty: no token is required.
    pub tokens: &'a [String],
    /// Further accepted values of `Host`, without a port.
    pub hosts: &'a [String],
}

/// Status and text of a refusal.
pub type Refusal = (StatusCode, &'static str);

/// Suffixes of cluster-internal names, which public DNS does not resolve.
const INTERNAL: [&str; 3] = [".svc", ".cluster.local", ".localhost"];

impl Guard<'_> {
    /// Checks a request.
    ///
    /// # Errors
    /// The status and the text of the refusal.
    pub fn admit(&self, head: &Parts) -> Result<(), Refusal> {
        // Kubernetes probes carry no token and change nothing.
        if matches!(head.uri.path(), "/livez" | "/readyz") {
            return Ok(());
        }
        let host = host(head)?;
        let known = host.is_none_or(|host| self.is_own_host(host));
        if !known {
            return Err((
                StatusCode::MISDIRECTED_REQUEST,
                "this Host is not accepted by the admin address: add it to [admin] hosts",
            ));
        }
        same_origin(head, host)?;
        // The page contains no data; it prompts for the token and sends it with each request for data.
        if !self.tokens.is_empty() && !is_page(head) {
            has_token(&head.headers, self.tokens)?;
        }
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        match reads || is_no_form(&head.headers) {
            true => Ok(()),
            false => Err((
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "a change needs content-type: application/json (or application/toml for /v1/config/check)",
            )),
        }
    }

    /// Whether `host` cannot be used for DNS rebinding, which needs a public DNS name: an address,
    /// a single-label name, a cluster-internal name or one from the settings.
    fn is_own_host(&self, host: &str) -> bool {
        let name = name_of(host);
        is_literal(name)
            || !name.contains('.')
            || INTERNAL.iter().any(|suffix| name.to_ascii_lowercase().ends_with(suffix))
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// Returns the requested host, if any. Browsers always send exactly one valid host.
fn host(head: &Parts) -> Result<Option<&str>, Refusal> {
    let malformed =
        (StatusCode::BAD_REQUEST, "the Host header is not a host name with an optional port");
    let mut named = head.headers.get_all(HOST).iter();
    let (first, second) = (named.next(), named.next());
    let header = first.map(|value| value.to_str().map_err(|_| malformed)).transpose()?;
    let authority = head.uri.authority().map(http::uri::Authority::as_str);
    let host = authority.or(header);
    let sound = host.is_none_or(is_host) && header.is_none_or(is_host) && second.is_none();
    if sound { Ok(host) } else { Err(malformed) }
}

/// Returns whether `host` is a name, an IPv4 address or an IPv6 address in brackets, with an optional
/// port (the subset of RFC 3986, 3.2.2 that browsers send).
fn is_host(host: &str) -> bool {
    let name = name_of(host);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let port = host[name.len()..].strip_prefix(':');
    let port_sound = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let labels =
        || name.strip_suffix('.').unwrap_or(name).split('.').all(|label| !label.is_empty());
    port_sound && (is_literal(name) || name.bytes().all(plain) && labels())
}

fn is_literal(name: &str) -> bool {
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inside) => inside.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<Ipv4Addr>().is_ok(),
    }
}

/// The host without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether a file of the dashboard is read.
fn is_page(head: &Parts) -> bool {
    matches!(head.method, Method::GET | Method::HEAD) && dashboard::file(head.uri.path()).is_some()
}

fn same_origin(head: &Parts, host: Option<&str>) -> Result<(), Refusal> {
    let text = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let foreign = (StatusCode::FORBIDDEN, "requests of other origins are refused");
    if let Some(origin) = head.headers.get(ORIGIN) {
        let origin = origin.to_str().unwrap_or("?");
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        if authority.is_none() || authority != host {
            return Err(foreign);
        }
    }
    let site = text("sec-fetch-site");
    let follows_a_link = head.method == Method::GET && text("sec-fetch-mode") == Some("navigate");
    match site {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) if follows_a_link => Ok(()),
        Some(_) => Err(foreign),
    }
}

fn has_token(headers: &HeaderMap, tokens: &[String]) -> Result<(), Refusal> {
    let refused = (StatusCode::UNAUTHORIZED, "the admin address requires its bearer token");
    let mut offered = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (offered.next(), offered.next()) else { return Err(refused) };
    let Some((scheme, key)) = value.as_bytes().split_at_checked(7) else { return Err(refused) };
    let key = key.trim_ascii();
    let same =
        tokens.iter().fold(false, |same, token| same | bool::from(token.as_bytes().ct_eq(key)));
    match scheme.eq_ignore_ascii_case(b"bearer ") && same {
        true => Ok(()),
        false => Err(refused),
    }
}

/// Whether the content type is one that a browser sends to another origin only after a preflight.
fn is_no_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    ["application/json", "application/toml"].iter().any(|own| kind.eq_ignore_ascii_case(own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn status(guard: &Guard<'_>, method: &str, headers: &[(&str, &str)]) -> u16 {
        let admitted = guard.admit(&head(method, "/v1/fleet", headers));
        admitted.err().map_or(200, |(status, _)| status.as_u16())
    }

    #[test]
    fn foreign_pages_are_refused_and_operators_are_not() {
        let guard = Guard { tokens: &[], hosts: &["gate.example".to_owned()] };
        const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");
        let local = ("host", "127.0.0.1:9090");
        type RequestRow<'a> = (&'a str, &'a [(&'a str, &'a str)], u16);
        let rows: [RequestRow<'_>; 20] = [
            ("GET", &[local], 200),
            ("GET", &[("host", "[::1]:9090")], 200),
            ("GET", &[("host", "localhost:9090")], 200),
            ("GET", &[("host", "tidegate:9090")], 200),
            ("GET", &[("host", "tidegate.llm.svc.cluster.local:9090")], 200),
            ("GET", &[("host", "Gate.Example:9090")], 200),
            ("GET", &[("host", "rebind.attacker.example:9090")], 421),
            ("POST", &[("host", "rebind.attacker.example:9090"), JSON], 421),
            ("POST", &[local, JSON], 200),
            ("POST", &[local, ("content-type", "application/toml")], 200),
            ("POST", &[local], 415),
            ("POST", &[local, ("content-type", "text/plain")], 415),
            ("POST", &[local, JSON, ("origin", "http://127.0.0.1:9090")], 200),
            ("POST", &[local, JSON, ("origin", "http://evil.example")], 403),
            ("POST", &[local, JSON, ("origin", "null")], 403),
            ("POST", &[local, JSON, ("sec-fetch-site", "cross-site")], 403),
            ("POST", &[local, JSON, ("sec-fetch-site", "same-site")], 403),
            ("POST", &[local, JSON, ("sec-fetch-site", "same-origin")], 200),
            ("GET", &[local, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], 403),
            (
                "GET",
                &[local, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
                200,
            ),
        ];
        for (method, headers, expected) in rows {
            assert_eq!(status(&guard, method, headers), expected, "{method} {headers:?}");
        }
    }

    #[test]
    fn a_malformed_host_is_refused() {
        let guard = Guard::default();
        for malformed in [
            "",
            ":9090",
            ".",
            "a..b",
            "localhost:99999",
            "localhost:",
            "user@localhost",
            "local host",
            "localhost/x",
            "localhost,evil.example",
            "evil%2eexample",
            "[::1",
            "::1",
            "[::1].evil.example",
            "[localhost]",
            "127.0.0.1:80:90",
        ] {
            assert_eq!(status(&guard, "GET", &[("host", malformed)]), 400, "{malformed:?}");
        }
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(status(&guard, "GET", &two), 400);
        let mut bytes = head("GET", "/v1/fleet", &[]);
        bytes.headers.insert(HOST, http::HeaderValue::from_bytes(b"ev\xefl.example").unwrap());
        assert_eq!(guard.admit(&bytes).err().unwrap().0, 400);
        let named = head("GET", "http://localhost/v1/fleet", &[("host", "ev il")]);
        assert_eq!(guard.admit(&named).err().unwrap().0, 400);
        for sound in ["localhost.", "a-b_c", "[fe80::1]", "10.0.0.1", "a.svc:1"] {
            let expected = if sound == "localhost." { 421 } else { 200 };
            assert_eq!(status(&guard, "GET", &[("host", sound)]), expected, "{sound}");
        }
    }

    #[test]
    fn a_token_is_required_except_for_probes() {
        let guard = Guard {
            tokens: &["0123456789abcdef".to_owned(), "fedcba9876543210".to_owned()],
            hosts: &[],
        };
        let bearer = |key: &'static str| ("authorization", key);
        assert_eq!(status(&guard, "GET", &[]), 401);
        assert_eq!(status(&guard, "GET", &[bearer("Bearer 0123456789abcdef")]), 200);
        assert_eq!(status(&guard, "GET", &[bearer("bearer fedcba9876543210")]), 200);
        assert_eq!(status(&guard, "GET", &[bearer("Bearer 0123456789abcdeF")]), 401);
        assert_eq!(status(&guard, "GET", &[bearer("Basic 0123456789abcdef")]), 401);
        let two = [bearer("Bearer 0123456789abcdef"), bearer("Bearer x")];
        assert_eq!(status(&guard, "GET", &two), 401, "two Authorization headers are ambiguous");
        for path in ["/", "/dashboard.js", "/dashboard.css"] {
            assert!(guard.admit(&head("GET", path, &[("host", "localhost")])).is_ok(), "{path}");
            let post = head("POST", path, &[("host", "localhost")]);
            assert_eq!(guard.admit(&post).err().unwrap().0, 401, "{path}");
        }
        for probe in ["/livez", "/readyz"] {
            assert!(guard.admit(&head("GET", probe, &[("host", "a.b.c")])).is_ok());
        }
    }
}
