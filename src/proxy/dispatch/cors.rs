//! CORS for browsers (Fetch standard): preflight answers and the headers that allow scripts to read
//! answers. Enabled by `[server.cors]`: engines' own CORS headers are replaced, and preflights are
//! answered without a key, because browsers send none with them.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use tidegate_settings::CorsSettings;

/// Any origin, or any header.
const ANY: &str = "*";
/// Response headers exposed to scripts in addition to the CORS-safelisted ones.
const EXPOSED: &str = "x-request-id, retry-after";

/// The CORS headers of `[server.cors]`.
pub struct Cors {
    any_origin: bool,
    origins: Vec<HeaderValue>,
    methods: HeaderValue,
    /// Allowed request headers. `None`: those in the preflight, because `*` does not include
    /// `authorization`.
    headers: Option<HeaderValue>,
    max_age: HeaderValue,
    credentials: bool,
}

impl Cors {
    /// Creates the headers from validated settings.
    pub fn new(settings: &CorsSettings) -> Cors {
        let list = |names: &[String]| HeaderValue::from_str(&names.join(", ")).ok();
        let any = |names: &[String]| names.iter().any(|name| name == ANY);
        let origins =
            settings.allow_origins.iter().filter_map(|one| HeaderValue::from_str(one).ok());
        Cors {
            any_origin: any(&settings.allow_origins),
            origins: origins.collect(),
            methods: list(&settings.allow_methods).unwrap_or(HeaderValue::from_static("POST")),
            headers: list(&settings.allow_headers).filter(|_| !any(&settings.allow_headers)),
            max_age: HeaderValue::from(settings.max_age.get() as u64),
            credentials: settings.allow_credentials,
        }
    }

    /// The `Origin` of a request; `None` if it has none.
    pub fn origin(headers: &HeaderMap) -> Option<HeaderValue> {
        headers.get(ORIGIN).cloned()
    }

    /// Returns the answer to a preflight; `None` for other requests.
    pub fn preflight(&self, head: &Parts) -> Option<Response<()>> {
        let has_method = head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let origin = head.headers.get(ORIGIN)?;
        if head.method != Method::OPTIONS || !has_method {
            return None;
        }
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        let headers = answer.headers_mut();
        self.mark(Some(origin), headers);
        if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            let requested = head.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
            if let Some(allowed) = self.headers.as_ref().or(requested) {
                headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed.clone());
            }
            headers.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        headers.append(VARY, HeaderValue::from_static("access-control-request-headers"));
        Some(answer)
    }

    /// Sets the CORS headers of an answer for this origin and removes the engine's.
    pub fn mark(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        let replaced = [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ];
        for name in replaced {
            headers.remove(name);
        }
        if !self.any_origin || self.credentials {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(origin) = origin.filter(|origin| self.allows(origin)) else { return };
        let allowed = match self.any_origin && !self.credentials {
            true => HeaderValue::from_static(ANY),
            false => origin.clone(),
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.any_origin || self.origins.contains(origin)
    }
}
