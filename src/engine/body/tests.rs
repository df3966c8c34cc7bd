//! Bodies scanned: every field, every refusal.

use super::*;
use crate::testing::raw_value;
use proptest::prelude::*;

const CHAT: Endpoint = Endpoint::ChatCompletions;
const TEXT: Endpoint = Endpoint::Completions;

fn read(endpoint: Endpoint, body: &str) -> Scan {
    scan(endpoint, body.as_bytes()).unwrap_or_else(|error| panic!("{body}: {error}"))
}

/// A chat body with some more members.
fn chat(more: &str) -> String {
    format!(r#"{{"model":"m","messages":[]{more}}}"#)
}

fn completion(more: &str) -> String {
    format!(r#"{{"model":"m","prompt":"a"{more}}}"#)
}

#[track_caller]
fn refused(endpoint: Endpoint, body: impl AsRef<[u8]>, message: &str, param: Option<&str>) {
    let body = body.as_ref();
    let error = scan(endpoint, body).expect_err(&String::from_utf8_lossy(body));
    assert!(error.message.contains(message), "{error}");
    assert_eq!(error.param, param, "{error}");
}

#[test]
fn what_tidegate_reads_is_found_and_the_rest_is_at_hand() {
    let body = chat(
        r#", "stream": true, "stream_options":{"include_usage":true,"x":[1]}, "max_tokens":16,
        "max_completion_tokens":8, "tools":[{"a":1}], "priority":-3, "cache_salt":"s",
        "add_generation_prompt":false, "reasoning_effort":"high", "user":null"#,
    );
    let scan = read(CHAT, &body);
    let body = body.as_bytes();
    assert_eq!(scan.model_name(body).as_deref(), Some("m"));
    assert!(scan.stream && scan.include_usage && !scan.client_handoff);
    assert_eq!((scan.n, scan.max_tokens, scan.priority), (1, Some(Tokens(8)), Some(-3)));
    assert_eq!(scan.tools.map(|span| span.of(body)), Some(&br#"[{"a":1}]"#[..]));
    assert_eq!(scan.cache_salt.and_then(|span| span.text(body)).as_deref(), Some("s"));
    assert_eq!((scan.add_generation_prompt, scan.continue_final_message), (Some(false), None));
    assert_eq!(scan.value(body, "reasoning_effort"), Some(&b"\"high\""[..]));
    assert_eq!((scan.value(body, "user"), scan.value(body, "nothing")), (None, None));
    assert_eq!(scan.whole, None);
}

#[test]
fn of_a_repeated_member_the_last_counts_and_null_is_absent() {
    let body = chat(r#","model":"n","stream":true,"stream":null,"m\u0061x_tokens":5,"n":null"#);
    let scan = read(CHAT, &body);
    assert_eq!(scan.model_name(body.as_bytes()).as_deref(), Some("n"));
    assert_eq!((scan.stream, scan.max_tokens, scan.n), (false, Some(Tokens(5)), 1));
}

#[test]
fn names_and_strings_may_have_escapes() {
    let body = r#" {"mod\u0065l" : "a\"\u00e9\n", "messages": [ ]} "#;
    let scan = read(CHAT, body);
    assert_eq!(scan.model_name(body.as_bytes()).as_deref(), Some("a\"é\n"));
    assert_eq!(scan.value(body.as_bytes(), "model"), Some(&br#""a\"\u00e9\n""#[..]));
}

#[test]
fn every_form_of_a_prompt_is_told_apart() {
    let prompt = |value: &str| {
        let body = format!(r#"{{"model":"m","prompt": {value} }}"#);
        let scan = read(TEXT, &body);
        (scan.prompt, scan.token_ids(body.as_bytes()), scan.whole)
    };
    assert!(matches!(prompt(r#""a""#), (Prompt::Text(_), None, None)));
    let (ids, read_ids, whole) = prompt("[1, 20 ,\n300]");
    assert!(matches!(ids, Prompt::TokenIds(3, _)));
    assert_eq!((read_ids, whole), (Some(vec![1, 20, 300]), None));
    let many = format!("[{}7]", "12345, ".repeat(999));
    assert!(matches!(prompt(&many).0, Prompt::TokenIds(1000, _)));
    let list = Some(WholeReason::ListPrompt);
    assert!(matches!(prompt(r#"["a","b"]"#), (Prompt::List(_), None, reason) if reason == list));
    assert!(matches!(prompt("[ [1,2] ]"), (Prompt::List(_), None, reason) if reason == list));
    for value in ["7", "{}", "[]", "[null]", "[-1]", "[1,2.5]", "[1,\"a\"]", "[1,[2]]"] {
        let body = format!(r#"{{"model":"m","prompt":{value}}}"#);
        refused(TEXT, body, "`prompt` must be", Some("prompt"));
    }
}

#[test]
fn the_prompt_of_every_endpoint_is_found() {
    let cases = [
        (Endpoint::Tokenize, r#"{"prompt":"a"}"#, "\"a\""),
        (Endpoint::Tokenize, r#"{"messages":[1],"prompt":null}"#, "[1]"),
        (Endpoint::Embeddings, r#"{"model":"m","input":["a","b"]}"#, r#"["a","b"]"#),
        (Endpoint::Embeddings, r#"{"model":"m","messages":[2]}"#, "[2]"),
        (Endpoint::Responses, r#"{"model":"m","input":"a"}"#, "\"a\""),
        (Endpoint::Messages, r#"{"model":"m","messages":[3],"max_tokens":9}"#, "[3]"),
    ];
    for (endpoint, body, expected) in cases {
        let span = match read(endpoint, body).prompt {
            Prompt::Text(span) | Prompt::Messages(span) | Prompt::Input(span) => span,
            other => panic!("{body}: {other:?}"),
        };
        assert_eq!(span.of(body.as_bytes()), expected.as_bytes(), "{body}");
    }
    let responses = read(Endpoint::Responses, r#"{"model":"m","max_output_tokens":9}"#);
    assert_eq!((responses.max_tokens, responses.prompt), (Some(Tokens(9)), Prompt::Absent));
}

#[test]
fn a_body_that_is_no_json_object_is_refused() {
    let cases: [(&[u8], &str); 11] = [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"[]", "must be a JSON object"),
        (b"\"a\"", "must be a JSON object"),
        (b"{\"a\":1", "not valid JSON"),
        (b"{\"a\":1}x", "not valid JSON"),
        (b"{\"a\":1,}", "not valid JSON"),
        (b"{\"a\":01}", "not valid JSON"),
        (b"{\"a\":\"\n\"}", "not valid JSON"),
        (b"{\"a\":{\"b\":tru}}", "not valid JSON"),
        (b"{\"a\":\"\xff\"}", "not UTF-8"),
    ];
    for (body, message) in cases {
        refused(CHAT, body, message, None);
    }
}

#[test]
fn nesting_is_bounded_and_never_overflows_the_stack() {
    let nested =
        |depth: usize| chat(&format!(r#","x":{}{}"#, "[".repeat(depth), "]".repeat(depth)));
    read(CHAT, &nested(126));
    refused(CHAT, nested(127), "nested deeper than 127", None);
    refused(CHAT, nested(1_000_000), "nested deeper than 127", None);
    refused(CHAT, "{\"a\":".repeat(1_000_000), "not valid JSON", None);
    // Many brackets are not deep, and those in strings are none.
    read(CHAT, &chat(&format!(r#","x":["{}\\\"[",{}0]"#, "[{".repeat(500), "[],{},".repeat(500))));
}

#[test]
fn wrong_types_are_refused_by_name() {
    let cases = [
        (r#","stream":"yes""#, "`stream` must be a boolean, got a string.", "stream"),
        (r#","stream":1"#, "`stream` must be a boolean, got a number.", "stream"),
        (r#","messages":"x""#, "`messages` must be a list, got a string.", "messages"),
        (r#","model":7"#, "`model` must be a string, got a number.", "model"),
        (r#","n":0"#, "`n` must be at least 1, got 0.", "n"),
        (r#","n":1.5"#, "`n` must be an integer.", "n"),
        (r#","n":[1]"#, "`n` must be an integer, got a list.", "n"),
        (r#","max_tokens":0"#, "`max_tokens` must be at least 1, got 0.", "max_tokens"),
        (r#","max_tokens":"9""#, "`max_tokens` must be an integer, got a string.", "max_tokens"),
        (r#","max_tokens":1e99"#, "`max_tokens` must be an integer.", "max_tokens"),
        (r#","max_completion_tokens":-1"#, "must be at least 1, got -1.", "max_completion_tokens"),
        (r#","stream_options":true"#, "`stream_options` must be an object", "stream_options"),
        (r#","stream_options":{"include_usage":1}"#, "include_usage` must be", "stream_options"),
        (r#","use_beam_search":{}"#, "must be a boolean, got an object.", "use_beam_search"),
    ];
    for (more, message, param) in cases {
        refused(CHAT, chat(more), message, Some(param));
    }
}

#[test]
fn what_an_endpoint_cannot_do_without_is_required() {
    refused(CHAT, r#"{"messages":[]}"#, "provide a model", Some("model"));
    refused(CHAT, r#"{"model":null,"messages":[]}"#, "provide a model", Some("model"));
    refused(CHAT, r#"{"model":"m"}"#, "Missing required parameter: 'messages'", Some("messages"));
    refused(TEXT, r#"{"model":"m"}"#, "Missing required parameter: 'prompt'", Some("prompt"));
    let input = "Missing required parameter: 'input'";
    refused(Endpoint::Embeddings, r#"{"model":"m"}"#, input, Some("input"));
    refused(Endpoint::Tokenize, "{}", "Missing required parameter: 'prompt'", Some("prompt"));
}

#[test]
fn a_path_that_is_passed_through_may_mean_something_else_by_a_name() {
    for endpoint in [Endpoint::Other, Endpoint::Detokenize] {
        let body = r#"{"prompt":{"odd":1},"n":"x","max_tokens":-1,"input":7}"#;
        assert_eq!(read(endpoint, body).whole, Some(WholeReason::Endpoint));
    }
}

#[test]
fn whole_numbers_may_be_written_as_floats() {
    let scan = read(CHAT, &chat(r#","max_tokens":16.0,"n":2e0"#));
    assert_eq!((scan.max_tokens, scan.n), (Some(Tokens(16)), 2));
}

#[test]
fn what_must_run_whole_is_known_with_its_reason() {
    use WholeReason::{
        BeamSearch, ClientHandoff, Echo, OneToken, PromptEmbeds, PromptLogprobs, SeveralAnswers,
        TruncatesToFit, WouldBeRefused,
    };
    let cases = [
        (r#","n":2"#, Some(SeveralAnswers)),
        (r#","best_of":3"#, Some(SeveralAnswers)),
        (r#","best_of":1,"n":1"#, None),
        (r#","use_beam_search":true"#, Some(BeamSearch)),
        (r#","use_beam_search":false"#, None),
        (r#","prompt_embeds":"AAAA""#, Some(PromptEmbeds)),
        (r#","prompt_logprobs":0"#, Some(PromptLogprobs)),
        (r#","prompt_logprobs":null"#, None),
        (r#","echo":true"#, Some(Echo)),
        (r#","echo":true,"max_tokens":0"#, Some(Echo)),
        (r#","max_tokens":1"#, Some(OneToken)),
        (r#","max_tokens":2"#, None),
        (r#","truncate_prompt_tokens":-1"#, Some(TruncatesToFit)),
        (r#","truncate_prompt_tokens":100"#, None),
        (r#","kv_transfer_params":{"do_remote_prefill":true}"#, Some(ClientHandoff)),
        (r#","kv_transfer_params":{}"#, Some(ClientHandoff)),
        (r#","kv_transfer_params":null"#, None),
        (r#","stream_options":{"include_usage":true}"#, Some(WouldBeRefused)),
        (r#","stream_options":{"include_usage":true},"stream":true"#, None),
        (r#","min_tokens":9,"max_tokens":4"#, Some(WouldBeRefused)),
        (r#","min_tokens":4,"max_tokens":4"#, None),
        (r#","logprobs":5"#, None),
    ];
    for (more, expected) in cases {
        assert_eq!(read(TEXT, &completion(more)).whole, expected, "{more}");
    }
    let embeds_only = r#"{"model":"m","prompt_embeds":"AAAA"}"#;
    assert_eq!(read(TEXT, embeds_only).whole, Some(PromptEmbeds));
    assert_eq!(read(CHAT, &chat(r#","max_completion_tokens":1"#)).whole, Some(OneToken));
    let tokenize = read(Endpoint::Tokenize, r#"{"prompt":"a"}"#);
    assert_eq!(tokenize.whole, Some(WholeReason::Endpoint));
    assert!(read(TEXT, &completion(r#","kv_transfer_params":{}"#)).client_handoff);
}

#[test]
fn what_a_real_engine_was_asked_is_read_as_it_read_it() {
    let text = crate::testing::json(crate::testing::MISC);
    let expected = [
        ("bad_json_type", Some("messages")),
        ("unknown_model", None),
        ("stream_options_without_stream", None),
        ("n2", None),
        ("tokens_in", None),
    ];
    for (case, param) in expected {
        let request = text[case]["request"].to_string();
        let chat = text[case]["request"].get("messages").is_some();
        let found = scan(if chat { CHAT } else { TEXT }, request.as_bytes());
        assert_eq!(found.err().and_then(|error| error.param), param, "{case}");
    }
}

proptest! {
    #[test]
    fn a_damaged_body_is_read_exactly_if_it_is_still_a_json_object(
        values in prop::collection::vec(raw_value(), 0..4),
        at in 0..200_usize, byte in prop::sample::select(b"\"\\{}[],:0e-.tn \n\x00\xc3".to_vec()),
    ) {
        let members = values.iter().enumerate().map(|(i, value)| format!("\"k{i}\":{value}"));
        let mut body = format!("{{{}}}", members.collect::<Vec<_>>().join(",")).into_bytes();
        let at = at % body.len();
        body[at] = byte;
        let expected = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&body);
        prop_assert_eq!(scan(Endpoint::Other, &body).is_ok(), expected.is_ok());
    }
}
