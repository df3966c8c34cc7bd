//! Failures and plain values as HTTP answers: the one place where a status code is chosen.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use tidegate_engine::{ApiError, ErrorForm};
use tidegate_terms::Seconds;

use crate::failure::{Failure, LegProblem};
use crate::relay::RelayBody;

/// When a client should try again after a 429 or 503: about as long as a burst of prefills takes
/// to drain, and the shortest that `Retry-After` can say.
const RETRY_AFTER_SECONDS: Seconds = Seconds(1.0);

/// A failure, in the form that the client reads.
pub fn failure(failure: &Failure, form: ErrorForm) -> Response<RelayBody> {
    error(&api_error(failure), form)
}

/// The error that stands for a failure.
pub fn api_error(failure: &Failure) -> ApiError {
    match failure {
        Failure::Refused(error) => error.clone(),
        Failure::Saturated => ApiError::saturated(RETRY_AFTER_SECONDS),
        Failure::NoBackend | Failure::ShuttingDown => ApiError::no_backend(RETRY_AFTER_SECONDS),
        Failure::QueueDeadline { waited } => ApiError::queue_deadline(*waited),
        Failure::Exhausted { last, .. } => match last.problem {
            LegProblem::Status(StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
                ApiError::no_backend(RETRY_AFTER_SECONDS)
            }
            _ => ApiError::upstream_failed(failure.to_string()),
        },
    }
}

/// An error, in the form that the client reads.
pub fn error(error: &ApiError, form: ErrorForm) -> Response<RelayBody> {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, form.body(error));
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(method) = error.allow {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
    }
    response
}

/// Can requests be served? As engines say it: by the status alone.
pub fn health(ready: bool) -> Response<RelayBody> {
    let mut response = Response::new(RelayBody::full(Bytes::new()));
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// A JSON document.
pub fn json(status: StatusCode, body: Bytes) -> Response<RelayBody> {
    let mut response = Response::new(RelayBody::full(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Leg, LegFailure};
    use tidegate_terms::BackendId;

    #[test]
    fn every_failure_has_its_status() {
        let answered = |status| Failure::Exhausted {
            attempts: 2,
            last: LegFailure {
                on: BackendId(0),
                backend: "a".into(),
                leg: Leg::Whole,
                problem: LegProblem::Status(status),
            },
        };
        let rows = [
            (Failure::Refused(ApiError::too_large(1)), 413, false),
            (Failure::Saturated, 429, true),
            (Failure::NoBackend, 503, true),
            (Failure::ShuttingDown, 503, true),
            (Failure::QueueDeadline { waited: Seconds(3.0) }, 504, false),
            (answered(StatusCode::INTERNAL_SERVER_ERROR), 502, false),
            (answered(StatusCode::SERVICE_UNAVAILABLE), 503, true),
        ];
        for (row, status, retry) in rows {
            let response = failure(&row, ErrorForm::OpenAi);
            assert_eq!(response.status().as_u16(), status, "{row}");
            assert_eq!(response.headers().contains_key(RETRY_AFTER), retry, "{row}");
        }
    }
}
