//! `GET /v1/models` over all backends: the engines' own cards, put together when they change.

use http::{Response, StatusCode};

use crate::relay::RelayBody;
use crate::respond;
use crate::service::Proxy;

/// The merged list as it was last put together.
pub fn answer(proxy: &Proxy) -> Response<RelayBody> {
    respond::json(StatusCode::OK, (**proxy.models.load()).clone())
}
