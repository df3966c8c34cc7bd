//! An error as the last event of a Responses stream, which has no `[DONE]`.

use bytes::Bytes;
use serde_json::json;

use crate::ApiError;

/// Formats the `error` event that OpenAI's client libraries raise.
pub(crate) fn responses(error: &ApiError) -> Bytes {
    let ApiError { kind, message, param, code, .. } = error;
    let inner = json!({"type": kind, "code": code, "message": message, "param": param});
    let event = json!({
        "type": "error",
        "sequence_number": 0,
        "code": code,
        "message": message,
        "param": param,
        "error": inner,
    });
    Bytes::from(format!("event: error\ndata: {event}\n\n"))
}

#[cfg(test)]
mod tests {
    use crate::{EngineError, ErrorForm};

    #[test]
    fn an_engines_error_reaches_the_client_in_its_format() {
        let openai = r#"{
            "error": {"message": "why", "code": 400}
        }"#;
        for body in [openai, r#"{"detail":"why"}"#, "why"] {
            let event = |form| {
                let event = EngineError::of_body(body.as_bytes()).event(form, 400);
                let event = String::from_utf8(event.to_vec()).expect("UTF-8");
                let line = event.lines().find_map(|line| line.strip_prefix("data: "));
                let data: serde_json::Value =
                    serde_json::from_str(line.expect("data")).expect("JSON");
                (event.clone(), data)
            };
            let (text, data) = event(ErrorForm::OpenAi);
            assert_eq!(data["error"]["message"], "why", "{text}");
            assert!(text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
            for form in [ErrorForm::Anthropic, ErrorForm::Responses] {
                let (text, data) = event(form);
                assert_eq!(
                    (&data["type"], &data["error"]["message"]),
                    (&"error".into(), &"why".into())
                );
                assert!(text.starts_with("event: error\n") && !text.contains("[DONE]"), "{text}");
            }
        }
    }

    #[test]
    fn error_messages_quote_no_hand_off() {
        let body = r#"{"error":{"message":"in {'kv_transfer_params': {'remote_host': 'h'}}"}}"#;
        let error = EngineError::of_body(body.as_bytes());
        assert_eq!(error.message, "in {'kv_transfer_params': null}");
        let events = format!("data: {body}\n\n");
        let error = EngineError::of_events(events.as_bytes()).expect("an error");
        assert_eq!(error.message, "in {'kv_transfer_params': null}");
    }
}
