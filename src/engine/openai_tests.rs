//! Errors and model lists in OpenAI's format.

use super::*;
use crate::testing::{MISC, json};

#[test]
fn every_error_has_its_status_and_openais_format() {
    let wait = Seconds(2.1);
    let cases = [
        (ApiError::bad_request("no", Some("n")), 400, Some("n"), None),
        (ApiError::from(crate::JsonBodyError::new("no")), 400, None, None),
        (ApiError::unauthorized(), 401, None, Some("invalid_api_key")),
        (ApiError::model_not_found("x"), 404, Some("model"), Some("model_not_found")),
        (ApiError::unknown_path("GET", "/x"), 404, None, Some("unknown_url")),
        (
            ApiError::method_not_allowed("PUT", "/x", "POST"),
            405,
            None,
            Some("method_not_supported"),
        ),
        (ApiError::too_large(9), 413, None, Some("request_too_large")),
        (
            ApiError::context_length(Tokens(8), Tokens(9), None),
            400,
            Some("messages"),
            Some("context_length_exceeded"),
        ),
        (ApiError::saturated(wait), 429, None, Some("rate_limit_exceeded")),
        (ApiError::internal(), 500, None, None),
        (ApiError::upstream_failed("gone"), 502, None, Some("upstream_failed")),
        (ApiError::no_backend(wait), 503, None, Some("no_backend")),
        (ApiError::body_budget(wait), 503, None, Some("body_budget")),
        (ApiError::queue_deadline(wait), 504, None, Some("queue_deadline")),
    ];
    for (error, status, param, code) in cases {
        assert_eq!(error.status, status, "{error}");
        let body = json(error.body());
        let expected = serde_json::json!({"error": {
            "message": error.message, "type": error.kind, "param": param, "code": code,
        }});
        assert_eq!(body, expected);
        let sse = format!("data: {expected}\n\ndata: [DONE]\n\n");
        let sent = error.sse();
        let mut reader = crate::SseReader::new(crate::Endpoint::ChatCompletions);
        let (ours, theirs) = (reader.feed(&sent), reader.feed(sse.as_bytes()));
        assert_eq!(ours, theirs);
        assert!(ours.error && ours.done && ours.tokens == 0);
    }
}

#[test]
fn the_error_names_the_missing_model() {
    let body = json(ApiError::model_not_found("a\"\n`").body());
    assert_eq!(body["error"]["message"], "The model `a\"\n`` does not exist.");
}

#[test]
fn retry_after_is_in_whole_seconds_and_at_least_one() {
    for (after, seconds) in [(0.0, 1), (0.2, 1), (1.01, 2), (-5.0, 1), (f64::NAN, 1)] {
        assert_eq!(ApiError::saturated(Seconds(after)).retry_after, Some(seconds));
    }
}

#[test]
fn an_exceeded_context_length_is_reported_in_tokens() {
    let error = ApiError::context_length(Tokens(4096), Tokens(4000), Some(Tokens(200)));
    assert!(error.message.contains("maximum context length is 4096 tokens"), "{error}");
    assert!(error.message.contains("requested 4200 tokens (4000 in the messages, 200"), "{error}");
}

#[test]
fn model_cards_are_copied_byte_for_byte() {
    let answer =
        br#"{"data":[{"id":"b","x":2.0},{"id":"\u0061"},7,{"id":"c", "max_model_len":9}]}"#;
    let cards = cards_of(answer);
    let names: Vec<&str> = cards.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["b", "a", "c"]);
    let list = list_of(cards.iter().map(|(_, card)| *card));
    let expected = r#"{"object":"list","data":[{"id":"b","x":2.0},{"id":"\u0061"},{"id":"c", "max_model_len":9}]}"#;
    assert_eq!(list, expected);
    let lengths: Vec<_> = models_of(&list).into_iter().map(|card| card.max_model_len).collect();
    assert_eq!(lengths, [None, None, Some(Tokens(9))]);
    assert_eq!(list_of([]), r#"{"object":"list","data":[]}"#);
    assert!(cards_of(b"<html>").is_empty() && cards_of(b"{}").is_empty());
}

#[test]
fn a_recorded_model_list_is_parsed() {
    let answer = json(MISC)["GET /v1/models"]["response"].clone();
    let card = ModelCard { id: "tiny".to_owned(), max_model_len: Some(Tokens(4096)) };
    assert_eq!(models_of(answer.as_str().expect("text").as_bytes()), [card]);
}
