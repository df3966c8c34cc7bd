//! Filter 2: API keys. They are compared in constant time and never printed.

use crate::Tenant;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::fmt;
use std::sync::Arc;
use subtle::{Choice, ConstantTimeEq};
use tidegate_engine::ApiError;

/// Headers whose value is the key itself: Anthropic's and Azure's clients.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];

/// All headers that may carry a client's key.
pub const CREDENTIALS: [&str; 3] = ["authorization", KEY_HEADERS[0], KEY_HEADERS[1]];

/// One API key and its tenant.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Tenant: a label in metrics and logs.
    pub name: String,
    /// The secret, as sent by the client.
    pub key: String,
}

/// All keys; empty: no authentication.
#[derive(Debug)]
pub(crate) struct ApiKeys {
    known: Vec<(Tenant, ApiKey)>,
    open: Tenant,
}

impl ApiKeys {
    pub(crate) fn new(keys: Vec<ApiKey>) -> ApiKeys {
        let known = keys.into_iter().map(|key| (Tenant(Arc::from(key.name.as_str())), key));
        ApiKeys { known: known.collect(), open: Tenant(Arc::from(Tenant::OPEN)) }
    }

    /// Returns the key's tenant. All known keys are compared, in a time that depends only on
    /// lengths.
    fn tenant_of(&self, offered: &[u8]) -> Option<&Tenant> {
        let mut tenant = None;
        for (name, known) in &self.known {
            let same: Choice = known.key.as_bytes().ct_eq(offered);
            if bool::from(same) {
                tenant = Some(name);
            }
        }
        tenant
    }
}

/// Reads `Authorization: Bearer KEY`, else `x-api-key: KEY` or `api-key: KEY`. Of several values of
/// one kind, each must be a key of the same tenant: another server might use another one.
pub(crate) fn authenticate(keys: &ApiKeys, headers: &HeaderMap) -> Result<Tenant, ApiError> {
    if keys.known.is_empty() {
        return Ok(keys.open.clone());
    }
    let bearers = || headers.get_all(AUTHORIZATION).iter().map(|value| bearer(value.as_bytes()));
    let key_values = || KEY_HEADERS.into_iter().flat_map(|name| headers.get_all(name));
    let several = bearers().nth(1).is_some();
    let tenant = match several || bearers().any(|key| key.is_some()) {
        true => common_tenant(keys, bearers()),
        false => common_tenant(keys, key_values().map(|key| Some(key.as_bytes()))),
    };
    tenant.cloned().ok_or_else(ApiError::unauthorized)
}

/// Returns the tenant that owns all of these keys; `None` if there are none, or if one is unknown
/// or another tenant's.
fn common_tenant<'k, 'h>(
    keys: &'k ApiKeys,
    offered: impl Iterator<Item = Option<&'h [u8]>>,
) -> Option<&'k Tenant> {
    let mut tenant: Option<&Tenant> = None;
    for key in offered {
        let found = keys.tenant_of(key?)?;
        if tenant.is_some_and(|before| before != found) {
            return None;
        }
        tenant = Some(found);
    }
    tenant
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    // The scheme is case-insensitive (RFC 9110 §11.1).
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    /// Authenticates a request with these headers.
    fn tenant_of(headers: &[(&'static str, &'static str)]) -> Option<String> {
        let key = |name: &str, key: &str| ApiKey { name: name.into(), key: key.into() };
        let keys =
            ApiKeys::new(vec![key("red", "sk-red"), key("red", "sk-red2"), key("blue", "sk-blue")]);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), http::HeaderValue::from_static(value));
        }
        authenticate(&keys, &map).ok().map(|tenant| tenant.0.to_string())
    }

    #[test]
    fn each_of_several_keys_is_verified() {
        const RED: (&str, &str) = ("authorization", "Bearer sk-red");
        const RED_2: (&str, &str) = ("authorization", "bearer sk-red2");
        const BLUE: (&str, &str) = ("authorization", "Bearer sk-blue");
        const BAD: (&str, &str) = ("authorization", "Bearer x");
        const BASIC: (&str, &str) = ("authorization", "Basic eDp5");
        type Row = (&'static [(&'static str, &'static str)], Option<&'static str>);
        let rows: [Row; 14] = [
            (&[], None),
            (&[RED], Some("red")),
            (&[RED, RED], Some("red")),
            (&[RED, RED_2], Some("red")),
            (&[RED, BLUE], None),
            (&[RED, BAD], None),
            (&[BAD, RED], None),
            (&[RED, BASIC], None),
            (&[BASIC, RED], None),
            (&[BASIC, ("x-api-key", "sk-blue")], Some("blue")),
            (&[("api-key", "sk-blue")], Some("blue")),
            (&[("x-api-key", "sk-blue"), ("x-api-key", "x")], None),
            (&[("x-api-key", "sk-blue"), ("api-key", "sk-red")], None),
            (&[("x-api-key", "")], None),
        ];
        for (headers, expected) in rows {
            assert_eq!(tenant_of(headers).as_deref(), expected, "{headers:?}");
        }
    }
}
