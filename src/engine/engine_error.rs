//! An engine's error message, from an error body or the first event of a stream. It is forwarded in
//! the error format of the client's API; byte for byte if it has that format already.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::handoff_redaction::redact_error;
use crate::{ApiError, ErrorForm};

/// Limit of a message in bytes: some engines send a stack trace with the whole prompt.
const MESSAGE_MAX: usize = 8 << 10;

/// An engine's error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineError {
    /// HTTP status named in the error, 400 to 599.
    pub code: Option<u16>,
    /// Message; may be empty.
    pub message: String,
    /// The error's JSON and its format.
    json: Option<(JsonForm, Bytes)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JsonForm {
    OpenAi,
    Anthropic,
    Ollama,
}

impl EngineError {
    /// Reads an error body: JSON in a known format, or text.
    pub fn of_body(body: &[u8]) -> EngineError {
        let body = redact_error(body);
        if let Some(words) = EngineError::of_json(&body) {
            return words;
        }
        let text = String::from_utf8_lossy(&body);
        EngineError { message: shortened(text.trim()), ..EngineError::default() }
    }

    /// Returns the first error among a stream's events or lines.
    pub fn of_events(bytes: &[u8]) -> Option<EngineError> {
        let bytes = redact_error(bytes);
        let lines = bytes.split(|byte| matches!(byte, b'\n' | b'\r'));
        let data = lines.map(|line| {
            let fields = [b"data:".as_slice(), b"\xef\xbb\xbfdata:", b"error:"];
            let data = fields.into_iter().find_map(|field| line.strip_prefix(field));
            data.unwrap_or(line).trim_ascii()
        });
        let mut data = data.filter(|data| data.starts_with(b"{"));
        data.clone().find_map(EngineError::of_json).or_else(|| data.find_map(EngineError::of_named))
    }

    /// Formats the error as a JSON body with this status.
    pub fn body(&self, form: ErrorForm, status: u16) -> Bytes {
        if let Some((own, json)) = &self.json
            && own.is(form)
        {
            return json.clone();
        }
        let error = self.api_error(status);
        match form {
            ErrorForm::OpenAi | ErrorForm::Responses => {
                let ApiError { message, kind, .. } = &error;
                let error =
                    json!({ "message": message, "type": kind, "param": null, "code": status });
                Bytes::from(json!({ "error": error }).to_string())
            }
            other => other.body(&error),
        }
    }

    /// Formats the error as the last event of a started stream.
    pub fn event(&self, form: ErrorForm, status: u16) -> Bytes {
        if form == ErrorForm::Responses {
            return crate::error_event::responses(&self.api_error(status));
        }
        let body = self.body(form, status);
        // An event's data is one line. JSON has raw line ends only between its tokens.
        let line: Vec<u8> = body
            .iter()
            .map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte })
            .collect();
        let line = String::from_utf8_lossy(&line);
        Bytes::from(match form {
            ErrorForm::OpenAi | ErrorForm::Responses => {
                format!("data: {line}\n\ndata: [DONE]\n\n")
            }
            ErrorForm::Anthropic => format!("event: error\ndata: {line}\n\n"),
            ErrorForm::Ollama => format!("{line}\n"),
        })
    }

    /// Converts to an [`ApiError`] with this status and the engine's message.
    pub fn api_error(&self, status: u16) -> ApiError {
        let message = match self.message.as_str() {
            "" => format!("The engine answered {status}."),
            message => message.to_owned(),
        };
        ApiError::of_engine(status, message)
    }

    /// Reads the data of an event named `error`, or of an `error:` field.
    fn of_named(bytes: &[u8]) -> Option<EngineError> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let message = ["message", "detail"].iter().find_map(|key| text_of(&value[*key]))?;
        Some(EngineError { code: code_of(&value), message: shortened(&message), json: None })
    }

    fn of_json(bytes: &[u8]) -> Option<EngineError> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let error = [&value["error"], &value["response"]["error"]];
        let error = error.into_iter().find(|error| !error.is_null());
        let form = form_of(&value, error);
        if form.is_none() && error.is_none() && !is_error(&value) {
            return None;
        }
        let error = error.unwrap_or(&value);
        let message = match error {
            Value::String(message) => Some(message.clone()),
            _ => ["message", "detail", "error"].iter().find_map(|key| text_of(&error[*key])),
        };
        Some(EngineError {
            code: code_of(error).or_else(|| code_of(&value)),
            message: shortened(message.as_deref().unwrap_or_default()),
            json: form.map(|form| (form, Bytes::copy_from_slice(bytes.trim_ascii()))),
        })
    }
}

impl JsonForm {
    fn is(self, form: ErrorForm) -> bool {
        match self {
            JsonForm::OpenAi => matches!(form, ErrorForm::OpenAi | ErrorForm::Responses),
            JsonForm::Anthropic => form == ErrorForm::Anthropic,
            JsonForm::Ollama => form == ErrorForm::Ollama,
        }
    }
}

/// Returns the format, by the position of the message.
fn form_of(value: &Value, error: Option<&Value>) -> Option<JsonForm> {
    match &value["error"] {
        Value::String(_) => Some(JsonForm::Ollama),
        Value::Object(_) if value["type"] == "error" => Some(JsonForm::Anthropic),
        Value::Object(_) => Some(JsonForm::OpenAi),
        // vLLM before 0.10; OpenAI's client libraries read it too.
        _ if error.is_none() && value["object"] == "error" => Some(JsonForm::OpenAi),
        _ => None,
    }
}

fn is_error(value: &Value) -> bool {
    value["type"] == "error" || value["type"] == "response.failed" || !value["detail"].is_null()
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Returns the status, given as a number, as digits, or by an error type.
fn code_of(error: &Value) -> Option<u16> {
    let number = |value: &Value| match value {
        Value::Number(number) => number.as_u64(),
        Value::String(digits) => digits.parse().ok(),
        _ => None,
    };
    let keys = ["code", "status", "status_code", "http_status"];
    let status = keys.iter().filter_map(|key| number(&error[*key])).find_map(|code| {
        let code = u16::try_from(code).ok()?;
        (400..600).contains(&code).then_some(code)
    });
    let types = ["type", "code", "error_type"].iter().filter_map(|key| error[*key].as_str());
    status.or_else(|| types.into_iter().find_map(status_of))
}

/// Error types of OpenAI, Anthropic, vLLM and TGI.
fn status_of(error_type: &str) -> Option<u16> {
    Some(match error_type {
        "invalid_request_error"
        | "BadRequestError"
        | "validation"
        | "invalid_prompt"
        | "context_length_exceeded" => 400,
        "authentication_error" | "invalid_api_key" => 401,
        "permission_error" => 403,
        "not_found_error" | "NotFoundError" | "model_not_found" => 404,
        "request_too_large" => 413,
        "UnprocessableEntityError" => 422,
        "rate_limit_error" | "rate_limit_exceeded" | "insufficient_quota" => 429,
        "overloaded_error" | "overloaded" => 503,
        "api_error" | "server_error" | "internal_error" | "InternalServerError" => 500,
        _ => return None,
    })
}

fn shortened(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

#[cfg(test)]
#[path = "engine_error_tests.rs"]
mod tests;
