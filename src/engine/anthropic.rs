//! tidegate's own errors in Anthropic's format (<https://docs.anthropic.com/en/api/errors>) and in
//! Ollama's, which is one string. Errors of engines are not converted here (`engine_error.rs`).

use bytes::Bytes;
use serde::Serialize;

use crate::{ApiError, Endpoint};

/// Error format of an API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorForm {
    /// OpenAI's: all paths without a format of their own.
    OpenAi,
    /// OpenAI's in the Responses API, whose streams have an `error` event.
    Responses,
    /// Anthropic's: `/v1/messages` and below.
    Anthropic,
    /// Ollama's: `/api/` and below.
    Ollama,
}

#[derive(Serialize)]
struct AnthropicBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: AnthropicError<'a>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
}

impl ErrorForm {
    /// Returns the format for clients of `path`.
    pub fn of_path(path: &str) -> ErrorForm {
        let messages = path.strip_prefix("/v1/messages");
        match messages.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            true => ErrorForm::Anthropic,
            false if path.starts_with("/api/") => ErrorForm::Ollama,
            false => ErrorForm::OpenAi,
        }
    }

    /// Returns the format for clients of `endpoint`.
    pub fn of(endpoint: Endpoint) -> ErrorForm {
        match endpoint {
            Endpoint::Messages => ErrorForm::Anthropic,
            Endpoint::Responses => ErrorForm::Responses,
            Endpoint::OllamaChat | Endpoint::OllamaGenerate => ErrorForm::Ollama,
            _ => ErrorForm::OpenAi,
        }
    }

    /// Formats the error as a JSON body.
    pub fn body(self, error: &ApiError) -> Bytes {
        match self {
            ErrorForm::OpenAi | ErrorForm::Responses => error.body(),
            ErrorForm::Anthropic => Bytes::from(json(error)),
            ErrorForm::Ollama => Bytes::from(ollama(error)),
        }
    }

    /// Formats the error as the last event of a started stream.
    pub fn sse(self, error: &ApiError) -> Bytes {
        match self {
            ErrorForm::OpenAi => error.sse(),
            ErrorForm::Responses => crate::error_event::responses(error),
            ErrorForm::Anthropic => Bytes::from(format!("event: error\ndata: {}\n\n", json(error))),
            ErrorForm::Ollama => Bytes::from(ollama(error) + "\n"),
        }
    }
}

fn ollama(error: &ApiError) -> String {
    #[derive(Serialize)]
    struct OllamaBody<'a> {
        error: &'a str,
    }
    serde_json::to_string(&OllamaBody { error: &error.message }).unwrap_or_default()
}

fn json(error: &ApiError) -> String {
    let body = AnthropicBody {
        kind: "error",
        error: AnthropicError { kind: kind(error.status), message: &error.message },
    };
    // Strings always serialise.
    serde_json::to_string(&body).unwrap_or_default()
}

/// Anthropic's error type for a status.
const fn kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        500..=599 => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tidegate_types::Seconds;

    #[test]
    fn errors_of_the_messages_api_have_anthropics_format() {
        let form = ErrorForm::of_path("/v1/messages");
        for (error, kind) in [
            (ApiError::bad_request("no \"x\"", Some("x")), "invalid_request_error"),
            (ApiError::unauthorized(), "authentication_error"),
            (ApiError::model_not_found("m"), "not_found_error"),
            (ApiError::too_large(1), "request_too_large"),
            (ApiError::saturated(Seconds(1.0)), "rate_limit_error"),
            (ApiError::no_backend(Seconds(1.0)), "overloaded_error"),
            (ApiError::queue_deadline(Seconds(1.0)), "timeout_error"),
            (ApiError::upstream_failed("gone"), "api_error"),
        ] {
            let expected =
                json!({"type": "error", "error": {"type": kind, "message": error.message}});
            let body: Value = serde_json::from_slice(&form.body(&error)).expect("JSON");
            assert_eq!(body, expected);
            let sse = form.sse(&error);
            assert!(sse.starts_with(b"event: error\ndata: {") && sse.ends_with(b"}\n\n"));
        }
    }

    #[test]
    fn a_path_determines_the_error_format() {
        for (path, form) in [
            ("/v1/messages", ErrorForm::Anthropic),
            ("/v1/messages/count_tokens", ErrorForm::Anthropic),
            ("/v1/messagesx", ErrorForm::OpenAi),
            ("/api/chat", ErrorForm::Ollama),
            ("/v1/chat/completions", ErrorForm::OpenAi),
        ] {
            assert_eq!(ErrorForm::of_path(path), form, "{path}");
        }
    }
}
