//! Browsers ask before they send: which origins may read answers, and with which methods and headers
//! (the Fetch standard's CORS protocol). Off unless `[server.cors]` is there: then engines' own words
//! on it are replaced, and a preflight needs no key, since browsers send none with it.

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
/// What scripts may read of an answer's headers beside the few that they always may.
const EXPOSED: &str = "x-request-id, retry-after";

/// The CORS headers of `[server.cors]`.
pub struct Cors {
    any_origin: bool,
    origins: Vec<HeaderValue>,
    methods: HeaderValue,
    /// `None`: those that were asked for. A `*` would not stand for `authorization`.
    headers: Option<HeaderValue>,
    max_age: HeaderValue,
    credentials: bool,
}

impl Cors {
    /// By the settings, which are valid.
    pub fn new(settings: &CorsSettings) -> Cors {
        let list = |words: &[String]| HeaderValue::from_str(&words.join(", ")).ok();
        let any = |words: &[String]| words.iter().any(|word| word == ANY);
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

    /// The origin whose script asks; `None` if no browser does.
    pub fn origin(headers: &HeaderMap) -> Option<HeaderValue> {
        headers.get(ORIGIN).cloned()
    }

    /// The answer to a preflight, if this is one.
    pub fn preflight(&self, head: &Parts) -> Option<Response<()>> {
        let asked = head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let origin = head.headers.get(ORIGIN)?;
        if head.method != Method::OPTIONS || !asked {
            return None;
        }
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        let headers = answer.headers_mut();
        self.mark(Some(origin), headers);
        if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            let wanted = head.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
            if let Some(allowed) = self.headers.as_ref().or(wanted) {
                headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed.clone());
            }
            headers.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        headers.append(VARY, HeaderValue::from_static("access-control-request-headers"));
        Some(answer)
    }

    /// Say in an answer whether a script of this origin may read it.
    pub fn mark(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        let theirs = [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ];
        for name in theirs {
            headers.remove(name);
        }
        if !self.any_origin || self.credentials {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(origin) = origin.filter(|origin| self.allows(origin)) else { return };
        let told = match self.any_origin && !self.credentials {
            true => HeaderValue::from_static(ANY),
            false => origin.clone(),
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, told);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.any_origin || self.origins.contains(origin)
    }
}
