//! Scans of native API bodies.

use super::super::scan;
use super::*;

#[track_caller]
fn check(
    endpoint: Endpoint,
    body: &str,
    prompt: Option<&str>,
    max_tokens: Option<u64>,
    whole: Option<ColocatedReason>,
) {
    let scan = scan(endpoint, body.as_bytes()).expect("native bodies are never refused");
    let span = match scan.prompt {
        Prompt::Text(span) | Prompt::Messages(span) | Prompt::List(span) => Some(span),
        Prompt::TokenIds(_, span) => Some(span),
        _ => None,
    };
    let found = span.map(|span| String::from_utf8_lossy(span.of(body.as_bytes())).into_owned());
    assert_eq!(found.as_deref(), prompt, "{body}");
    assert_eq!((scan.max_tokens, scan.colocated), (max_tokens.map(Tokens), whole), "{body}");
}

#[test]
fn prompt_and_limit_are_found_under_each_apis_names() {
    let generate = Endpoint::Generate;
    check(
        generate,
        r#"{"text":"a","sampling_params":{"max_new_tokens":9}}"#,
        Some("\"a\""),
        Some(9),
        None,
    );
    check(generate, r#"{"input_ids":[1,2]}"#, Some("[1,2]"), None, None);
    let tgi = r#"{"inputs":"a","parameters":{"max_new_tokens":7}}"#;
    check(generate, tgi, Some("\"a\""), Some(7), None);
    let ids = r#"{"token_ids":[5,6,7],"sampling_params":{"max_tokens":4}}"#;
    check(Endpoint::TokensIn, ids, Some("[5,6,7]"), Some(4), None);
    let whole = Some(ColocatedReason::Endpoint);
    let chat = r#"{"model":"m","messages":[1],"options":{"num_predict":3}}"#;
    check(Endpoint::OllamaChat, chat, Some("[1]"), Some(3), whole);
    // -1 means no limit.
    let text = r#"{"model":"m","prompt":"a","options":{"num_predict":-1}}"#;
    check(Endpoint::OllamaGenerate, text, Some("\"a\""), None, whole);
}

#[test]
fn reasons_to_run_colocated_are_found() {
    let generate = |more: &str| format!(r#"{{"text":"a"{more}}}"#);
    for (body, reason) in [
        (generate(r#","sampling_params":{"n":2}"#), ColocatedReason::SeveralAnswers),
        (generate(r#","sampling_params":{"max_new_tokens":1}"#), ColocatedReason::OneToken),
        (r#"{"text":["a","b"]}"#.to_owned(), ColocatedReason::ListPrompt),
        ("{}".to_owned(), ColocatedReason::ListPrompt),
    ] {
        assert_eq!(
            scan(Endpoint::Generate, body.as_bytes()).unwrap().colocated,
            Some(reason),
            "{body}"
        );
    }
    let own = r#"{"token_ids":[1],"kv_transfer_params":{}}"#;
    let scan = scan(Endpoint::TokensIn, own.as_bytes()).unwrap();
    assert_eq!(scan.colocated, Some(ColocatedReason::ClientHandoff));
}

#[test]
fn ollama_streams_by_default() {
    let stream = |body: &str| scan(Endpoint::OllamaChat, body.as_bytes()).unwrap().stream;
    assert!(stream(r#"{"model":"m","messages":[]}"#));
    assert!(!stream(r#"{"model":"m","messages":[],"stream":false}"#));
}

#[test]
fn unreadable_values_are_not_refused() {
    for body in [
        r#"{"text":7,"sampling_params":[{"max_new_tokens":"x"}]}"#,
        r#"{"text":{},"sampling_params":"x","n":"x","prompt":9}"#,
    ] {
        assert_eq!(scan(Endpoint::Generate, body.as_bytes()).unwrap().prompt, Prompt::Absent);
    }
}
