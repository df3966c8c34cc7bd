//! Converts failures and values to HTTP answers. Status codes of failures are chosen here only.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, UPGRADE};
use http::{Response, StatusCode};
use tidegate_engine::{ApiError, ErrorForm};
use tidegate_types::Seconds;

use crate::request::body::RelayBody;
use crate::upstream::failure::Failure;

/// `Retry-After` of a 429 or 503: about the time in which a burst of prefills drains, and the smallest
/// non-zero value of the header.
const RETRY_AFTER_SECONDS: Seconds = Seconds(1.0);

/// llm-d's header with the reason of a rejection by the gateway itself.
const DROPPED_REASON: HeaderName = HeaderName::from_static("x-llm-d-request-dropped-reason");

/// Returns the answer for a failure in the format of the client's API.
pub fn failure(failure: &Failure, form: ErrorForm) -> Response<RelayBody> {
    let mut response = answer(failure, form);
    let reason = match failure {
        Failure::ShuttingDown => "rejected-shutting-down",
        Failure::Busy { .. } => "rejected-saturated",
        _ => return response,
    };
    response.headers_mut().insert(DROPPED_REASON, HeaderValue::from_static(reason));
    response
}

fn answer(failure: &Failure, form: ErrorForm) -> Response<RelayBody> {
    match failure {
        Failure::EngineError { answer, .. } => json(answer.http_status(), answer.body(form)),
        Failure::Busy { answer, status, .. } => {
            let mut response = error(&api_error(failure), form);
            *response.body_mut() = RelayBody::full(answer.error.body(form, *status));
            response
        }
        _ => error(&api_error(failure), form),
    }
}

/// Answers a request whose body exceeds the free budget of request bodies.
pub fn body_budget_exhausted() -> ApiError {
    ApiError::body_budget(RETRY_AFTER_SECONDS)
}

/// Returns the API error of a failure.
pub fn api_error(failure: &Failure) -> ApiError {
    match failure {
        Failure::Refused(error) => error.clone(),
        Failure::Saturated => ApiError::saturated(RETRY_AFTER_SECONDS),
        Failure::NoBackend | Failure::ShuttingDown => ApiError::no_backend(RETRY_AFTER_SECONDS),
        Failure::QueueDeadline { waited } => ApiError::queue_deadline(*waited),
        Failure::Late { .. } => ApiError::late(RETRY_AFTER_SECONDS),
        Failure::EngineError { answer, .. } => {
            answer.error.api_error(answer.http_status().as_u16())
        }
        Failure::Busy { answer, status, retry_after, .. } => {
            answer.error.api_error(*status).retry_in((*retry_after).max(RETRY_AFTER_SECONDS))
        }
        Failure::Exhausted { .. } => ApiError::upstream_failed(failure.to_string()),
    }
}

/// Returns the answer for an error in the format of the client's API.
pub fn error(error: &ApiError, form: ErrorForm) -> Response<RelayBody> {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, form.body(error));
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(reason) = error.code.and_then(dropped_reason) {
        response.headers_mut().insert(DROPPED_REASON, HeaderValue::from_static(reason));
    }
    if status == StatusCode::UPGRADE_REQUIRED {
        // RFC 9110, 15.5.22.
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    if let Some(method) = error.allow {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
    }
    response
}

/// Returns llm-d's reason for rejections that llm-d also has.
fn dropped_reason(code: &str) -> Option<&'static str> {
    match code {
        "rate_limit_exceeded" | "body_budget" => Some("rejected-saturated"),
        "no_backend" => Some("rejected-no-endpoints"),
        "queue_deadline" | "late" => Some("rejected-ttl-expired"),
        _ => None,
    }
}

/// Returns a health answer: the status code, without a body.
pub fn health(ready: bool) -> Response<RelayBody> {
    let mut response = Response::new(RelayBody::full(Bytes::new()));
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// Returns a JSON response.
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
    use crate::upstream::ExchangeError;
    use crate::upstream::error_answer::ErrorAnswer;
    use crate::upstream::failure::{LegFailure, LegKind, LegProblem};
    use tidegate_types::BackendId;

    #[test]
    fn every_failure_has_its_status() {
        let broken = Failure::Exhausted {
            attempts: 2,
            last: LegFailure {
                on: BackendId(0),
                backend: "a".into(),
                leg: LegKind::Colocated,
                problem: LegProblem::Exchange(ExchangeError::Closed),
            },
        };
        let answer_of = |code: u16| {
            let event = format!("data: {{\"error\":{{\"message\":\"m\",\"code\":{code}}}}}\n\n");
            Box::new(ErrorAnswer::in_band(event.as_bytes()))
        };
        let engine_error =
            |code| Failure::EngineError { backend: "a".into(), answer: answer_of(code) };
        let busy = |status| Failure::Busy {
            backend: "a".into(),
            answer: answer_of(status),
            status,
            retry_after: Seconds(7.0),
        };
        let (full, none) = (Some("rejected-saturated"), None);
        let rows = [
            (Failure::Refused(ApiError::too_large(1)), 413, false, none),
            (Failure::Refused(body_budget_exhausted()), 503, true, full),
            (Failure::Saturated, 429, true, full),
            (Failure::NoBackend, 503, true, Some("rejected-no-endpoints")),
            (Failure::ShuttingDown, 503, true, Some("rejected-shutting-down")),
            (
                Failure::QueueDeadline { waited: Seconds(3.0) },
                504,
                false,
                Some("rejected-ttl-expired"),
            ),
            (Failure::Late { waited: Seconds(3.0) }, 429, true, Some("rejected-ttl-expired")),
            (broken, 502, false, none),
            (engine_error(400), 400, false, none),
            (engine_error(500), 500, false, none),
            (busy(429), 429, true, full),
            (busy(503), 503, true, full),
        ];
        for (row, status, retry, dropped) in rows {
            let response = failure(&row, ErrorForm::OpenAi);
            assert_eq!(response.status().as_u16(), status, "{row}");
            assert_eq!(response.headers().contains_key(RETRY_AFTER), retry, "{row}");
            let reason =
                response.headers().get(DROPPED_REASON).map(|value| value.to_str().unwrap());
            assert_eq!(reason, dropped, "{row}");
        }
    }
}
