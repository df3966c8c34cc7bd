//! Scans of request bodies: every field, every refusal.

use super::*;
use crate::testing::raw_value;
use proptest::prelude::*;

const CHAT: Endpoint = Endpoint::ChatCompletions;
const TEXT: Endpoint = Endpoint::Completions;

fn read(endpoint: Endpoint, body: &str) -> Scan {
    scan(endpoint, body.as_bytes()).unwrap_or_else(|error| panic!("{body}: {error}"))
}

/// A chat body with additional members.
fn chat(more: &str) -> String {
    format!(r#"{{"model":"m","messages":[]{more}}}"#)
}

fn completion(more: &str) -> String {
    format!(r#"{{"model":"m","prompt":"a"{more}}}"#)
}

#[track_caller]
fn refused(endpoint: Endpoint, body: impl AsRef<[u8]>, message: &str) {
    let body = body.as_ref();
    let error = scan(endpoint, body).expect_err(&String::from_utf8_lossy(body));
    assert!(error.message.contains(message), "{error}");
}

#[test]
fn known_members_are_read_and_others_are_available() {
    let body = chat(
        r#", "stream": true, "stream_options":{"include_usage":true,"x":[1]}, "max_tokens":16,
        "max_completion_tokens":8, "tools":[{"a":1}], "priority":-3, "cache_salt":"s",
        "add_generation_prompt":false, "reasoning_effort":"high", "user":null"#,
    );
    let scan = read(CHAT, &body);
    let body = body.as_bytes();
    assert_eq!(scan.model_name(body).as_deref(), Some("m"));
    assert!(scan.stream && scan.include_usage && !scan.client_handoff);
    assert_eq!((scan.n, scan.max_tokens), (1, Some(Tokens(8))));
    assert_eq!(scan.tools.map(|span| span.of(body)), Some(&br#"[{"a":1}]"#[..]));
    assert_eq!(scan.cache_salt.and_then(|span| span.text(body)).as_deref(), Some("s"));
    assert_eq!((scan.add_generation_prompt, scan.continue_final_message), (Some(false), None));
    assert_eq!(scan.value(body, "reasoning_effort"), Some(&b"\"high\""[..]));
    assert_eq!((scan.value(body, "user"), scan.value(body, "nothing")), (None, None));
    assert_eq!(scan.colocated, None);
}

#[test]
fn the_last_of_repeated_members_counts_and_null_is_absent() {
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
fn every_prompt_type_is_recognised() {
    let prompt = |value: &str| {
        let body = format!(r#"{{"model":"m","prompt": {value} }}"#);
        let scan = read(TEXT, &body);
        (scan.prompt, scan.token_ids(body.as_bytes()), scan.colocated)
    };
    assert!(matches!(prompt(r#""a""#), (Prompt::Text(_), None, None)));
    let (ids, read_ids, whole) = prompt("[1, 20 ,\n300]");
    assert!(matches!(ids, Prompt::TokenIds(3, _)));
    assert_eq!((read_ids, whole), (Some(vec![1, 20, 300]), None));
    let many = format!("[{}7]", "12345, ".repeat(999));
    assert!(matches!(prompt(&many).0, Prompt::TokenIds(1000, _)));
    let list = Some(ColocatedReason::ListPrompt);
    assert!(matches!(prompt(r#"["a","b"]"#), (Prompt::List(_), None, reason) if reason == list));
    assert!(matches!(prompt("[ [1,2] ]"), (Prompt::List(_), None, reason) if reason == list));
    for value in ["7", "{}", "[]", "[null]", "[-1]", "[1,2.5]", "[1,\"a\"]", "[1,[2]]"] {
        assert!(
            matches!(prompt(value), (Prompt::List(_), None, reason) if reason == list),
            "{value}"
        );
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
fn a_body_that_is_not_a_json_object_is_refused() {
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
        refused(CHAT, body, message);
    }
}

#[test]
fn nesting_is_limited_without_stack_overflow() {
    let nested =
        |depth: usize| chat(&format!(r#","x":{}{}"#, "[".repeat(depth), "]".repeat(depth)));
    read(CHAT, &nested(126));
    refused(CHAT, nested(127), "nested deeper than 127");
    refused(CHAT, nested(1_000_000), "nested deeper than 127");
    refused(CHAT, "{\"a\":".repeat(1_000_000), "not valid JSON");
    // Many brackets without depth, and brackets in strings.
    read(CHAT, &chat(&format!(r#","x":["{}\\\"[",{}0]"#, "[{".repeat(500), "[],{},".repeat(500))));
}

#[test]
fn an_odd_value_is_estimated_and_the_request_runs_colocated() {
    let odd = Some(ColocatedReason::OddValue);
    let tokens = |n| Some(Tokens(n));
    for (more, stream, max_tokens) in [
        (r#","stream":"yes""#, true, None),
        (r#","stream":1"#, true, None),
        (r#","stream":0.0"#, false, None),
        (r#","stream":"FALSE""#, false, None),
        (r#","stream":[]"#, false, None),
        (r#","max_tokens":"9""#, false, tokens(9)),
        (r#","max_tokens":" 9.0 ""#, false, tokens(9)),
        (r#","max_tokens":9.5"#, false, tokens(9)),
        (r#","max_tokens":"many""#, false, None),
        (r#","max_tokens":-1"#, false, None),
        (r#","max_tokens":0"#, false, None),
        (r#","max_tokens":{}"#, false, None),
        (r#","max_completion_tokens":-1,"max_tokens":7"#, false, tokens(7)),
        (r#","n":0"#, false, None),
        (r#","n":[1]"#, false, None),
        (r#","stream_options":true"#, false, None),
        (r#","stream":true,"stream_options":{"include_usage":1}"#, true, None),
        (r#","use_beam_search":{}"#, false, None),
        (r#","echo":2,"min_tokens":"x","best_of":"""#, false, None),
        (r#","model":7"#, false, None),
    ] {
        let scan = read(CHAT, &chat(more));
        let reason = scan.colocated.filter(|reason| *reason != ColocatedReason::WouldBeRefused);
        let refused = scan.colocated == Some(ColocatedReason::WouldBeRefused);
        assert!(reason == odd || refused, "{more}: {:?}", scan.colocated);
        assert_eq!((scan.stream, scan.max_tokens, scan.n), (stream, max_tokens, 1), "{more}");
    }
    let huge = read(CHAT, &chat(r#","max_tokens":1e99"#));
    assert_eq!((huge.max_tokens, huge.colocated), (tokens(i64::MAX as u64), odd));
    assert!(read(CHAT, &chat(r#","stream_options":{"include_usage":1}"#)).include_usage);
    assert_eq!(read(TEXT, &completion(r#","n":"2""#)).n, 2);
}

#[test]
fn a_missing_member_is_left_to_the_engine() {
    for (endpoint, body) in [
        (CHAT, r#"{"model":"m"}"#),
        (TEXT, r#"{"model":"m"}"#),
        (Endpoint::Embeddings, r#"{"model":"m"}"#),
        (Endpoint::Tokenize, "{}"),
    ] {
        let scan = read(endpoint, body);
        assert_eq!(
            (scan.prompt, scan.colocated),
            (Prompt::Absent, Some(ColocatedReason::Endpoint))
        );
    }
    for body in [r#"{"messages":[]}"#, r#"{"model":null,"messages":[]}"#, &chat(r#","model":"""#)] {
        let scan = read(CHAT, body);
        assert_eq!((scan.model, scan.colocated), (None, None), "{body}");
    }
    for messages in ["\"x\"", "{}", "7", "[[1]]"] {
        let body = format!(r#"{{"model":"m","messages":{messages}}}"#);
        assert!(matches!(read(CHAT, &body).prompt, Prompt::Messages(_)), "{body}");
    }
}

#[test]
fn a_byte_order_mark_is_skipped_and_kept_in_the_body() {
    for inside in [r#"{"model":"m","messages":[]}"#, " { } ", r#"{"x":[]}"#] {
        let body = bytes::Bytes::from(format!("\u{feff}{inside}"));
        let marked = scan(CHAT, &body).unwrap();
        let plain = scan(CHAT, inside.as_bytes()).unwrap();
        assert_eq!(marked.model_name(&body), plain.model_name(inside.as_bytes()));
        let edited = crate::Edits::new().set("n", b"2").apply(&body, &marked);
        let expected = crate::Edits::new().set("n", b"2").apply(&inside.into(), &plain);
        assert_eq!(edited, [&b"\xef\xbb\xbf"[..], &expected].concat());
    }
    refused(CHAT, "\u{feff}", "empty");
    refused(CHAT, "\u{feff}\u{feff}{}", "not valid JSON");
}

#[test]
fn members_of_passed_through_bodies_are_not_interpreted() {
    for endpoint in [Endpoint::Other, Endpoint::Detokenize] {
        let body = r#"{"prompt":{"odd":1},"n":"x","max_tokens":-1,"input":7}"#;
        assert_eq!(read(endpoint, body).colocated, Some(ColocatedReason::Endpoint));
    }
}

#[test]
fn whole_numbers_may_be_written_as_floats() {
    let scan = read(CHAT, &chat(r#","max_tokens":16.0,"n":2e0"#));
    assert_eq!((scan.max_tokens, scan.n), (Some(Tokens(16)), 2));
}

#[test]
fn every_reason_to_run_colocated_is_reported() {
    use ColocatedReason::{
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
        assert_eq!(read(TEXT, &completion(more)).colocated, expected, "{more}");
    }
    let embeds_only = r#"{"model":"m","prompt_embeds":"AAAA"}"#;
    assert_eq!(read(TEXT, embeds_only).colocated, Some(PromptEmbeds));
    assert_eq!(read(CHAT, &chat(r#","max_completion_tokens":1"#)).colocated, Some(OneToken));
    let tokenize = read(Endpoint::Tokenize, r#"{"prompt":"a"}"#);
    assert_eq!(tokenize.colocated, Some(ColocatedReason::Endpoint));
    assert!(read(TEXT, &completion(r#","kv_transfer_params":{}"#)).client_handoff);
}

#[test]
fn recorded_requests_are_scanned() {
    let text = crate::testing::json(crate::testing::MISC);
    for case in
        ["bad_json_type", "unknown_model", "stream_options_without_stream", "n2", "tokens_in"]
    {
        let request = text[case]["request"].to_string();
        let chat = text[case]["request"].get("messages").is_some();
        assert!(scan(if chat { CHAT } else { TEXT }, request.as_bytes()).is_ok(), "{case}");
    }
}

proptest! {
    #[test]
    fn a_damaged_body_is_accepted_only_if_it_is_a_json_object(
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
