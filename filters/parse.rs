//! Filter 4: the body's one scan, and the model it names. It must never judge what the engine
//! judges better.

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
    /// `None` where the body names no model.
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
    let scan =
        scan(endpoint, body).map_err(|wrong| ApiError::bad_request(wrong.message, wrong.param))?;
    if scan.model.is_none() {
        return Ok(Parsed { scan: Some(scan), model: None });
    }
    let name = scan
        .model_name(body)
        .ok_or_else(|| ApiError::bad_request("`model` is not valid Unicode.", Some("model")))?;
    if directory.is_empty() {
        return Err(ApiError::no_backend(DIRECTORY_SOON));
    }
    let model = directory.find(&name).ok_or_else(|| ApiError::model_not_found(&name))?;
    Ok(Parsed { scan: Some(scan), model: Some(model) })
}
