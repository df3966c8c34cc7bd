//! Filter 3: a known path, its method, and the body's size. The content type is left to the engine.

use crate::{Directory, HeadParts};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use tidegate_engine::{ApiError, PathEntry, PathLookup};

/// Checks everything that a request's head determines.
pub(crate) fn check_head(
    body_max: usize,
    directory: &Directory,
    head: &HeadParts<'_>,
) -> Result<PathEntry, ApiError> {
    let method = head.method.as_str();
    let served = match directory.at(method, head.path) {
        PathLookup::Found(served) => served,
        PathLookup::Methods(allow) => {
            return Err(ApiError::method_not_allowed(method, head.path, allow));
        }
        PathLookup::Nothing => return Err(ApiError::unknown_path(method, head.path)),
    };
    // A malformed length is refused by the HTTP codec.
    let announced = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced = announced.and_then(|length| length.trim().parse::<u64>().ok());
    if announced.is_some_and(|length| length > body_max as u64) {
        return Err(ApiError::too_large(body_max));
    }
    let coding = head.headers.get(CONTENT_ENCODING).map(|value| value.as_bytes());
    if coding.is_some_and(|coding| !coding.eq_ignore_ascii_case(b"identity")) {
        return Err(compressed());
    }
    Ok(served)
}

/// Checks the actual length, which the head may not have announced correctly.
pub(crate) fn check_body(body_max: usize, body: &[u8]) -> Result<(), ApiError> {
    if body.len() > body_max {
        return Err(ApiError::too_large(body_max));
    }
    Ok(())
}

/// 415 (RFC 9110 §15.5.16): no engine reads compressed bodies, and they cannot be scanned.
fn compressed() -> ApiError {
    let message = "Compressed request bodies are not supported: send `content-encoding: identity`.";
    let invalid = ApiError::bad_request(message, Some("content-encoding"));
    ApiError { status: 415, code: Some("unsupported_media_type"), ..invalid }
}
