//! Filter 2: whose key is it? It must never tell how much of a key was right, nor keep or show one
//! where a log could catch it.

use crate::Tenant;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::fmt;
use std::sync::Arc;
use subtle::{Choice, ConstantTimeEq};
use tidegate_engine::ApiError;

/// Where a key alone is the value: as Anthropic's clients send it, and Azure's.
const BARE: [&str; 2] = ["x-api-key", "api-key"];

/// Every header that may carry a client's key.
pub const CREDENTIALS: [&str; 3] = ["authorization", BARE[0], BARE[1]];

/// One key and whose it is.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The tenant: a label in metrics and logs.
    pub name: String,
    /// The secret, as the client sends it.
    pub key: String,
}

/// All keys. Empty: everybody may come in.
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

    /// Whose this key is. Every known key is compared, and each in a time that depends on lengths
    /// alone.
    fn owner(&self, offered: &[u8]) -> Option<&Tenant> {
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

/// `Authorization: Bearer KEY`, else `x-api-key: KEY` or `api-key: KEY`. Of several values of one
/// kind each must be a key of the same tenant: another reader might take another one of them.
pub(crate) fn authenticate(keys: &ApiKeys, headers: &HeaderMap) -> Result<Tenant, ApiError> {
    if keys.known.is_empty() {
        return Ok(keys.open.clone());
    }
    let bearers = || headers.get_all(AUTHORIZATION).iter().map(|value| bearer(value.as_bytes()));
    let bare = || BARE.into_iter().flat_map(|name| headers.get_all(name));
    let several = bearers().nth(1).is_some();
    let owner = match several || bearers().any(|key| key.is_some()) {
        true => one_owner(keys, bearers()),
        false => one_owner(keys, bare().map(|key| Some(key.as_bytes()))),
    };
    owner.cloned().ok_or_else(ApiError::unauthorized)
}

/// The tenant that all of these keys belong to; `None` if there are no keys, or one of them is no
/// key of this tenant.
fn one_owner<'k, 'h>(
    keys: &'k ApiKeys,
    offered: impl Iterator<Item = Option<&'h [u8]>>,
) -> Option<&'k Tenant> {
    let mut tenant: Option<&Tenant> = None;
    for key in offered {
        let owner = keys.owner(key?)?;
        if tenant.is_some_and(|before| before != owner) {
            return None;
        }
        tenant = Some(owner);
    }
    tenant
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    // The scheme's case does not matter (RFC 9110 §11.1).
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

    /// Whose a request with these headers is.
    fn owner(headers: &[(&'static str, &'static str)]) -> Option<String> {
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
    fn every_one_of_several_keys_is_verified() {
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
            assert_eq!(owner(headers).as_deref(), expected, "{headers:?}");
        }
    }
}
