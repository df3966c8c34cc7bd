//! tidegate's own answers in OpenAI's format: errors and the model list. They name no backend,
//! except in the message passed to [`ApiError::upstream_failed`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use tidegate_types::{Seconds, Tokens};

/// An error answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{status} {message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// `error.type`
    pub kind: &'static str,
    /// `error.message`
    pub message: String,
    /// `error.param`: the invalid member of the body.
    pub param: Option<&'static str>,
    /// `error.code`: machine-readable.
    pub code: Option<&'static str>,
    /// `retry-after` header, in whole seconds.
    pub retry_after: Option<u32>,
    /// `allow` header of a 405.
    pub allow: Option<&'static str>,
}

/// One entry of an engine's `/v1/models`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// Model name.
    pub id: String,
    /// Context length in tokens, if reported (vLLM).
    pub max_model_len: Option<Tokens>,
}

/// `error.code` for a model that no backend serves.
pub const MODEL_NOT_FOUND: &str = "model_not_found";

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ApiError {
    /// 400: malformed body or parameter.
    pub fn bad_request(message: impl Into<String>, param: Option<&'static str>) -> ApiError {
        ApiError { param, ..ApiError::new(400, INVALID, message, None) }
    }

    /// 401: missing or unknown API key.
    pub fn unauthorized() -> ApiError {
        let message = "Incorrect API key provided. Send `Authorization: Bearer KEY`.";
        ApiError::new(401, "authentication_error", message, Some("invalid_api_key"))
    }

    /// 403: the gateway names a prefill target that is not allowed.
    pub fn prefill_not_allowed() -> ApiError {
        let message = "The prefill target is not allowed here.";
        ApiError::new(403, "permission_error", message, Some("prefill_target_not_allowed"))
    }

    /// 404: no backend serves the model.
    pub fn model_not_found(model: &str) -> ApiError {
        let message = format!("The model `{model}` does not exist.");
        ApiError {
            param: Some("model"),
            ..ApiError::new(404, "not_found_error", message, Some(MODEL_NOT_FOUND))
        }
    }

    /// 404: unknown path.
    pub fn unknown_path(method: &str, path: &str) -> ApiError {
        let message = format!("Unknown request URL: {method} {path}.");
        ApiError::new(404, "not_found_error", message, Some("unknown_url"))
    }

    /// 405: known path, other method.
    pub fn method_not_allowed(method: &str, path: &str, allow: &'static str) -> ApiError {
        let message = format!("Method {method} is not allowed for {path}: use {allow}.");
        ApiError {
            allow: Some(allow),
            ..ApiError::new(405, INVALID, message, Some("method_not_supported"))
        }
    }

    /// 408: the body did not arrive in time.
    pub fn body_timeout() -> ApiError {
        let message = "The request body was not received in time.".to_owned();
        ApiError::new(408, INVALID, message, Some("request_timeout"))
    }

    /// 413: the body exceeds `limit` bytes.
    pub fn too_large(limit: usize) -> ApiError {
        let message = format!("The request body is larger than {limit} bytes.");
        ApiError::new(413, INVALID, message, Some("request_too_large"))
    }

    /// 400: the prompt, or the prompt with the requested output, exceeds the model's context
    /// length. `output` is the client's `max_tokens`. The message follows OpenAI's.
    pub fn context_length(limit: Tokens, prompt: Tokens, output: Option<Tokens>) -> ApiError {
        let (limit, prompt) = (limit.get(), prompt.get());
        let message = match output.map(Tokens::get) {
            Some(output) => format!(
                "This model's maximum context length is {limit} tokens. However, you requested {} \
                 tokens ({prompt} in the messages, {output} in the completion). Please reduce the \
                 length of the messages or completion.",
                prompt.saturating_add(output)
            ),
            None => format!(
                "This model's maximum context length is {limit} tokens. However, your messages \
                 resulted in {prompt} tokens. Please reduce the length of the messages."
            ),
        };
        ApiError {
            param: Some("messages"),
            ..ApiError::new(400, INVALID, message, Some("context_length_exceeded"))
        }
    }

    /// 426: the path serves a websocket, and the request is not an HTTP/1.1 handshake. Websockets
    /// over HTTP/2 (RFC 8441) are not supported.
    pub fn websocket_only() -> ApiError {
        let message = "This path is a websocket: connect with HTTP/1.1 and `upgrade: websocket`.";
        ApiError::new(426, INVALID, message, Some("upgrade_required"))
    }

    /// 429: the queue is full. `retry_after` is rounded up to whole seconds, at least 1.
    pub fn saturated(retry_after: Seconds) -> ApiError {
        let message = "The service is saturated: too many requests are waiting. Retry later.";
        ApiError::new(429, "rate_limit_error", message, Some("rate_limit_exceeded"))
            .retry_in(retry_after)
    }

    /// 429: the request waited until its TTFT target could no longer be met (load shedding).
    pub fn late(retry_after: Seconds) -> ApiError {
        let message = "The service is overloaded: the time to first token would exceed its target. \
                       Retry later.";
        ApiError::new(429, "rate_limit_error", message, Some("late")).retry_in(retry_after)
    }

    /// 503: no backend for this model is available.
    pub fn no_backend(retry_after: Seconds) -> ApiError {
        let message = "No backend for this model is available. Retry later.";
        ApiError::new(503, SERVER, message, Some("no_backend")).retry_in(retry_after)
    }

    /// 503: the memory budget for request bodies is exhausted.
    pub fn body_budget(retry_after: Seconds) -> ApiError {
        let message = "The memory for request bodies is in use. Retry later.";
        ApiError::new(503, SERVER, message, Some("body_budget")).retry_in(retry_after)
    }

    /// 504: the request reached its queue deadline.
    pub fn queue_deadline(waited: Seconds) -> ApiError {
        let message = format!(
            "No backend had capacity within {:.1} s. Retry later.",
            waited.max(Seconds::ZERO).get()
        );
        ApiError::new(504, "timeout_error", message, Some("queue_deadline"))
    }

    /// 502: the backend failed and no retry was possible.
    pub fn upstream_failed(what: impl Into<String>) -> ApiError {
        ApiError::new(502, SERVER, what, Some("upstream_failed"))
    }

    /// An engine's error, with the type for its status.
    pub fn of_engine(status: u16, message: impl Into<String>) -> ApiError {
        let kind = match status {
            401 => "authentication_error",
            429 => "rate_limit_error",
            400..=499 => INVALID,
            _ => SERVER,
        };
        ApiError::new(status, kind, message, None)
    }

    /// 500: internal error of tidegate.
    pub fn internal() -> ApiError {
        ApiError::new(500, SERVER, "The proxy failed to serve this request.", None)
    }

    /// Formats the JSON body.
    pub fn body(&self) -> Bytes {
        Bytes::from(self.json())
    }

    /// Formats the error as the last events of a started stream.
    pub fn sse(&self) -> Bytes {
        Bytes::from(format!("data: {}\n\ndata: [DONE]\n\n", self.json()))
    }

    fn json(&self) -> String {
        let error = ErrorWire {
            message: &self.message,
            kind: self.kind,
            param: self.param,
            code: self.code,
        };
        // Strings and options always serialise.
        serde_json::to_string(&ErrorBody { error }).unwrap_or_default()
    }

    fn new(
        status: u16,
        kind: &'static str,
        message: impl Into<String>,
        code: Option<&'static str>,
    ) -> ApiError {
        let message = message.into();
        ApiError { status, kind, message, param: None, code, retry_after: None, allow: None }
    }

    /// Adds a `retry-after` header.
    pub fn retry_in(self, after: Seconds) -> ApiError {
        // `as` saturates, and converts NaN to 0.
        ApiError { retry_after: Some((after.get().ceil() as u32).max(1)), ..self }
    }
}

impl From<crate::JsonBodyError> for ApiError {
    fn from(error: crate::JsonBodyError) -> ApiError {
        ApiError::bad_request(error.message, None)
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorWire<'a>,
}

#[derive(Serialize)]
struct ErrorWire<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

/// Formats a model list of these raw cards.
pub fn list_of<'a>(cards: impl IntoIterator<Item = &'a str>) -> Bytes {
    let cards: Vec<&str> = cards.into_iter().collect();
    Bytes::from(format!(r#"{{"object":"list","data":[{}]}}"#, cards.join(",")))
}

/// Returns the raw cards of an engine's `/v1/models` answer with their names; empty if it cannot be
/// parsed.
pub fn cards_of(answer: &[u8]) -> Vec<(String, &str)> {
    let named = cards(answer).into_iter().filter_map(|card| {
        let wire: CardWire<'_> = serde_json::from_str(card.get()).ok()?;
        Some((wire.id.into_owned(), card.get()))
    });
    named.collect()
}

/// Returns the models in an engine's `/v1/models` answer; empty if it cannot be parsed.
pub fn models_of(answer: &[u8]) -> Vec<ModelCard> {
    let wires = cards(answer).into_iter().filter_map(|card| serde_json::from_str(card.get()).ok());
    wires
        .map(|CardWire { id, max_model_len }| ModelCard {
            id: id.into_owned(),
            max_model_len: max_model_len.map(Tokens),
        })
        .collect()
}

#[derive(Deserialize)]
struct CardWire<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    max_model_len: Option<u64>,
}

fn cards(answer: &[u8]) -> Vec<&RawValue> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        data: Vec<&'a RawValue>,
    }
    serde_json::from_slice::<List>(answer).map(|list| list.data).unwrap_or_default()
}

#[cfg(test)]
#[path = "openai_tests.rs"]
mod tests;
