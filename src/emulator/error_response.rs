//! Errors in vLLM's format (docs/spec/engine-protocols.md#vllm-errors, and the recorded
//! transcripts). The proxy is tested against these bytes.

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

/// Reason for a refused request, in vLLM's format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorResponse {
    /// One of 400, 403, 404, 500 and 503.
    pub status: StatusCode,
    /// vLLM's `type`.
    pub kind: &'static str,
    /// Error message.
    pub message: String,
    /// Name of the offending member.
    pub param: Option<String>,
}

#[derive(Serialize)]
struct Wire<'a> {
    error: VllmErrorBody<'a>,
}

#[derive(Serialize)]
struct VllmErrorBody<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: u16,
}

impl ErrorResponse {
    /// Value of the right type that is not valid.
    pub fn bad(message: String, param: Option<&str>) -> ErrorResponse {
        ErrorResponse {
            status: StatusCode::BAD_REQUEST,
            kind: "BadRequestError",
            message,
            param: param.map(str::to_owned),
        }
    }

    /// Value of the wrong type, with pydantic's message.
    pub fn wrong_type(member: &str, kind: &str, message: &str, input: &str) -> ErrorResponse {
        let loc = if member.is_empty() { "body".to_owned() } else { format!("body.{member}") };
        ErrorResponse {
            status: StatusCode::BAD_REQUEST,
            kind: "Bad Request",
            message: format!(
                "1 validation error:\n  {{'type': '{kind}', 'loc': '{loc}', 'msg': '{message}', 'input': {input}}}"
            ),
            param: Some(loc),
        }
    }

    /// Unknown model.
    pub fn unknown_model(model: &str, served: &str) -> ErrorResponse {
        ErrorResponse {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError",
            message: format!("The model `{model}` does not exist. Valid aliases: {served}."),
            param: Some("model".to_owned()),
        }
    }

    /// The KV was not received and the policy is to fail.
    pub fn internal() -> ErrorResponse {
        ErrorResponse {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "InternalServerError",
            message: "Internal server error".to_owned(),
            param: None,
        }
    }

    /// `--max-num-queued-reqs` is reached.
    pub fn busy() -> ErrorResponse {
        ErrorResponse {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "Service Unavailable",
            message: "The engine is currently busy. Please try again later.".to_owned(),
            param: None,
        }
    }

    /// A route that requires a command-line flag.
    pub fn scale_out_disabled() -> ErrorResponse {
        ErrorResponse {
            status: StatusCode::FORBIDDEN,
            kind: "PermissionDeniedError",
            message: "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them.".to_owned(),
            param: None,
        }
    }

    /// Returns the error as JSON.
    pub fn body(&self) -> Bytes {
        let error = VllmErrorBody {
            message: &self.message,
            kind: self.kind,
            param: self.param.as_deref(),
            code: self.status.as_u16(),
        };
        Bytes::from(serde_json::to_vec(&Wire { error }).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_type_reads_as_in_the_transcript() {
        let refusal = ErrorResponse::wrong_type(
            "messages",
            "list_type",
            "Input should be a valid list",
            "'x'",
        );
        let expected = r#"{"error":{"message":"1 validation error:\n  {'type': 'list_type', 'loc': 'body.messages', 'msg': 'Input should be a valid list', 'input': 'x'}","type":"Bad Request","param":"body.messages","code":400}}"#;
        assert_eq!(refusal.body(), expected);
    }
}
