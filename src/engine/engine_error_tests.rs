//! Errors of all engines, and their conversion into each format.

use super::*;

fn words(body: &str) -> EngineError {
    EngineError::of_body(body.as_bytes())
}

#[test]
fn every_engines_error_yields_its_message_and_code() {
    let table = [
        (r#"{"error":{"message":"m","code":400}}"#, Some(400), "m"),
        (
            r#"{"error":{"message":"m","type":"BadRequestError","param":null,"code":"422"}}"#,
            Some(422),
            "m",
        ),
        (r#"{"object":"error","message":"m","type":"NotFoundError","code":404}"#, Some(404), "m"),
        (r#"{"error":"m","error_type":"validation"}"#, Some(400), "m"),
        (r#"{"error":"m"}"#, None, "m"),
        (r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#, Some(503), "m"),
        (r#"{"type":"error","code":"server_error","message":"m"}"#, Some(500), "m"),
        (
            r#"{"type":"response.failed","response":{"error":{"code":"invalid_prompt","message":"m"}}}"#,
            Some(400),
            "m",
        ),
        (r#"{"detail":"m"}"#, None, "m"),
        (r#"{"error":{"message":"m","code":"boom"}}"#, None, "m"),
        (r#"{"error":{"message":"m","code":200}}"#, None, "m"),
        ("why", None, "why"),
        ("", None, ""),
    ];
    for (body, code, message) in table {
        let found = words(body);
        assert_eq!((found.code, found.message.as_str()), (code, message), "{body}");
    }
}

#[test]
fn an_error_in_the_clients_format_is_kept_and_others_are_converted() {
    let openai = r#"{"error":{"message":"m","code":400,"extra":1}}"#;
    let anthropic = r#"{"type":"error","error":{"type":"invalid_request_error","message":"m"}}"#;
    let ollama = r#"{"error":"m"}"#;
    let table = [
        (openai, ErrorForm::OpenAi, openai),
        (anthropic, ErrorForm::Anthropic, anthropic),
        (ollama, ErrorForm::Ollama, ollama),
        (openai, ErrorForm::Anthropic, anthropic),
        (openai, ErrorForm::Ollama, ollama),
    ];
    for (body, form, expected) in table {
        assert_eq!(words(body).body(form, 400), expected, "{body}");
    }
    let wrapped: Value =
        serde_json::from_slice(&words("why").body(ErrorForm::OpenAi, 500)).unwrap();
    assert_eq!(wrapped["error"]["message"], "why");
    assert_eq!(wrapped["error"]["code"], 500);
    assert_eq!(wrapped["error"]["type"], "server_error");
}

#[test]
fn an_error_event_is_found_and_formatted() {
    let stream =
        "event: error\ndata: {\"error\":{\"message\":\"m\",\"code\":400}}\n\ndata: [DONE]\n\n";
    let found = EngineError::of_events(stream.as_bytes()).unwrap();
    assert_eq!((found.code, found.message.as_str()), (Some(400), "m"));
    let event = found.event(ErrorForm::OpenAi, 400);
    assert_eq!(event, "data: {\"error\":{\"message\":\"m\",\"code\":400}}\n\ndata: [DONE]\n\n");
    assert_eq!(EngineError::of_events(b": hi\n\ndata: {\"choices\":[]}\n\n"), None);
    assert_eq!(EngineError::of_events(b"{\"error\":\"m\"}\n").unwrap().message, "m");
}

#[test]
fn a_long_message_is_cut_at_a_character_boundary() {
    let found = words(&"\u{e9}".repeat(MESSAGE_MAX));
    assert_eq!(found.message.len(), MESSAGE_MAX);
}
