//! Answers `/v1/models` and `/v1/models/ID` from the list that the control loop keeps.

use http::{Response, StatusCode};
use percent_encoding::percent_decode_str;
use tidegate_engine::{ApiError, ErrorForm};

use crate::dispatch::context::Proxy;
use crate::request::body::RelayBody;
use crate::request::respond;

/// The prefix of the path of one model's card.
const ONE: &str = "/v1/models/";

/// Returns the model list, or one model's card.
pub fn answer(proxy: &Proxy, path: &str) -> Response<RelayBody> {
    let models = proxy.models.load();
    let Some(id) = path.strip_prefix(ONE).filter(|id| !id.is_empty()) else {
        return respond::json(StatusCode::OK, models.all.clone());
    };
    let id = percent_decode_str(id).decode_utf8_lossy();
    match models.one(&id) {
        Some(card) => respond::json(StatusCode::OK, card.clone()),
        None => respond::error(&ApiError::model_not_found(&id), ErrorForm::OpenAi),
    }
}
