//! Filter 4: scans the body and resolves the model. It must never refuse anything but invalid JSON
//! and unknown models; the rest is left to the engine.

use crate::query::model_in_query;
use crate::{Directory, ModelEntry, RequestParts};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use std::sync::Arc;
use tidegate_engine::{ApiError, Endpoint, Scan, Span, is_form, model_in_form, scan};
use tidegate_types::Seconds;

/// `retry-after` while no model is known. Backends are queried for their models every few seconds.
const DIRECTORY_SOON: Seconds = Seconds(2.0);

/// Result of the filter.
pub(crate) struct Parsed<'a> {
    /// Scan of a JSON body.
    pub(crate) scan: Option<Scan>,
    /// The model; `None` if none is named and the fleet has several.
    pub(crate) model: Option<(&'a Arc<str>, &'a ModelEntry)>,
    /// Span of an alias in the body.
    pub(crate) alias_at: Option<Span>,
}

pub(crate) fn parse<'a>(
    endpoint: Endpoint,
    arrival: &RequestParts<'_>,
    directory: &'a Directory,
) -> Result<Parsed<'a>, ApiError> {
    let body = arrival.body;
    if endpoint == Endpoint::Realtime {
        let Some(name) = model_in_query(arrival.query) else { return Ok(unnamed(None, directory)) };
        return named(None, None, &name, directory);
    }
    let kind = content_type(arrival.headers);
    if is_form(kind) {
        let Some(at) = model_in_form(kind, body) else { return Ok(unnamed(None, directory)) };
        let name = String::from_utf8_lossy(at.of(body));
        return named(None, Some(at), &name, directory);
    }
    let may_be_json = || endpoint == Endpoint::Upload && body.first() == Some(&b'{');
    if !endpoint.reads_json() && !may_be_json() {
        return Ok(unnamed(None, directory));
    }
    let scan = scan(endpoint, body)?;
    let Some(at) = scan.model else { return Ok(unnamed(Some(scan), directory)) };
    match at.text(body) {
        Some(name) => named(Some(scan), Some(at), &name, directory),
        // An unpaired surrogate: no model has such a name.
        None => {
            let raw = String::from_utf8_lossy(at.of(body));
            Err(ApiError::model_not_found(raw.trim_matches('"')))
        }
    }
}

/// Without a name engines serve their own model: that of the fleet, if it has exactly one.
fn unnamed(scan: Option<Scan>, directory: &Directory) -> Parsed<'_> {
    Parsed { scan, model: directory.only(), alias_at: None }
}

fn named<'a>(
    scan: Option<Scan>,
    at: Option<Span>,
    name: &str,
    directory: &'a Directory,
) -> Result<Parsed<'a>, ApiError> {
    if directory.is_empty() {
        return Err(ApiError::no_backend(DIRECTORY_SOON));
    }
    let model = directory.find(name).ok_or_else(|| ApiError::model_not_found(name))?;
    let alias_at = at.filter(|_| **model.0 != *name);
    Ok(Parsed { scan, model: Some(model), alias_at })
}

fn content_type(headers: &HeaderMap) -> &[u8] {
    headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes()).unwrap_or_default()
}
