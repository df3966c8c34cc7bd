//! Filter 4: the body's one scan, and the model it names. It must never judge what the engine
//! judges better: refused is only what is not JSON, and a model that the fleet does not serve.

use crate::{Directory, ModelEntry};
use std::sync::Arc;
use tidegate_engine::{ApiError, Endpoint, Scan, scan};
use tidegate_terms::Seconds;

/// How soon a client may try again while no model is known: backends are asked for their models
/// every few seconds.
const DIRECTORY_SOON: Seconds = Seconds(2.0);

/// A body that was read.
pub(crate) struct Parsed<'a> {
    /// `None` where the body is no JSON.
    pub(crate) scan: Option<Scan>,
    /// `None` where the body names no model and the fleet has several.
    pub(crate) model: Option<(&'a Arc<str>, &'a ModelEntry)>,
}

pub(crate) fn parse<'a>(
    endpoint: Endpoint,
    body: &[u8],
    directory: &'a Directory,
) -> Result<Parsed<'a>, ApiError> {
    if !endpoint.reads_json() {
        return Ok(Parsed { scan: None, model: None });
    }
    let scan = scan(endpoint, body)?;
    let Some(named) = scan.model else {
        // Engines serve their own model then: of a fleet with one model it is that one.
        return Ok(Parsed { scan: Some(scan), model: directory.only() });
    };
    if directory.is_empty() {
        return Err(ApiError::no_backend(DIRECTORY_SOON));
    }
    let model = match named.text(body) {
        Some(name) => directory.find(&name).ok_or_else(|| ApiError::model_not_found(&name))?,
        // Half a surrogate pair: no model has such a name.
        None => {
            let raw = String::from_utf8_lossy(named.of(body));
            return Err(ApiError::model_not_found(raw.trim_matches('"')));
        }
    };
    Ok(Parsed { scan: Some(scan), model: Some(model) })
}
