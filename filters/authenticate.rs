//! Filter 2: whose key is it? It must never tell how much of a key was right, nor keep or show one
//! where a log could catch it.

use crate::Tenant;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::fmt;
use std::sync::Arc;
use subtle::{Choice, ConstantTimeEq};
use tidegate_engine::ApiError;

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
pub(crate) struct Keys {
    known: Vec<(Tenant, ApiKey)>,
    open: Tenant,
}

impl Keys {
    pub(crate) fn new(keys: Vec<ApiKey>) -> Keys {
        let known = keys.into_iter().map(|key| (Tenant(Arc::from(key.name.as_str())), key));
        Keys { known: known.collect(), open: Tenant(Arc::from(Tenant::OPEN)) }
    }
}

/// `Authorization: Bearer KEY`, else `x-api-key: KEY` as Anthropic's clients send it.
pub(crate) fn authenticate(keys: &Keys, headers: &HeaderMap) -> Result<Tenant, ApiError> {
    if keys.known.is_empty() {
        return Ok(keys.open.clone());
    }
    let offered = bearer(headers).or_else(|| headers.get("x-api-key").map(|key| key.as_bytes()));
    let offered = offered.ok_or_else(ApiError::unauthorized)?;
    // Every key is compared, and each in a time that depends on lengths alone.
    let mut tenant = None;
    for (name, known) in &keys.known {
        let same: Choice = known.key.as_bytes().ct_eq(offered);
        if bool::from(same) {
            tenant = Some(name);
        }
    }
    tenant.cloned().ok_or_else(ApiError::unauthorized)
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(7)?;
    // The scheme's case does not matter (RFC 9110 §11.1).
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("name", &self.name).finish_non_exhaustive()
    }
}
