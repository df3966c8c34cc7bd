//! Legs compared with exchanges recorded from vLLM.

use super::*;
use crate::testing::{CHAT, COMPLETIONS, json};
use crate::{SseReader, scan};
use serde_json::{Value, json as value};
use tidegate_types::Tokens;

const MEETING: RendezvousInfo<'_> =
    RendezvousInfo { host: "10.0.0.1", port: 8998, id: u64::MAX, peer: None, key: None };

fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

fn prefill(endpoint: Endpoint, body: &str) -> Option<Value> {
    let body = bytes(body);
    let scan = scan(endpoint, &body).expect("a body that can be read");
    match Family::VllmNixl.legs(endpoint, &body, &scan, &MEETING) {
        Legs::PrefillFirst { prefill } => Some(json(prefill)),
        Legs::Colocated => None,
        Legs::Concurrent(_) => panic!("vLLM's legs come one after the other"),
    }
}

fn keep_blocks() -> Value {
    value!({"do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
        "remote_block_ids": null, "remote_host": null, "remote_port": null})
}

/// Removes null members: recorded bodies omit what tidegate sets to null.
fn without_nulls(mut object: Value) -> Value {
    object.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    object
}

#[test]
fn recorded_exchanges_are_reproduced() {
    let chat = [(Endpoint::ChatCompletions, CHAT)];
    for (endpoint, text) in chat.into_iter().chain(COMPLETIONS.map(|c| (Endpoint::Completions, c)))
    {
        let record = json(text);
        let body = bytes(record["client_request"].to_string());
        let scan = scan(endpoint, &body).expect("a body that vLLM took");
        let legs = Family::VllmNixl.legs(endpoint, &body, &scan, &MEETING);
        let Legs::PrefillFirst { prefill } = legs else {
            panic!("split legs");
        };
        assert_eq!(without_nulls(json(prefill)), record["prefill_request"]);

        let answer = record["prefill_response"].to_string();
        let handoff = Family::VllmNixl.read_prefill(answer.as_bytes()).expect("vLLM's answer");
        let prompt = record["prefill_response"]["usage"]["prompt_tokens"].as_u64();
        assert_eq!(handoff.usage.map(|usage| usage.prompt.get()), prompt);
        let decode = Family::VllmNixl.decode_leg(&body, &scan, &handoff, None).body;
        assert_eq!(json(decode), record["decode_request"]);

        let mut reader = SseReader::new(endpoint);
        let seen = reader.feed(record["decode_sse"].as_str().expect("text").as_bytes());
        let usage = seen.usage.expect("usage was requested");
        assert_eq!(usage.completion, Tokens(u64::from(seen.tokens)));
        assert_eq!(usage.prompt.get(), prompt.unwrap_or_default());
        assert!(seen.done && seen.finished && !seen.error);
    }
}

#[test]
fn a_chat_prefill_makes_one_token_and_keeps_the_prompt() {
    let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,
        "stream_options":{"include_usage":true},"max_completion_tokens":500,"min_tokens":3,
        "stop":["a"],"stop_token_ids":[7],"logprobs":true,"top_logprobs":5,"temperature":0.70,
        "tools":[{"type":"function"}],"chat_template_kwargs":{"t":true},"cache_salt":"s",
        "priority":2,"unknown":{"deep":[1.50]},"user":null}"#;
    let expected = value!({
        "model": "m", "messages": [{"role": "user", "content": "x"}], "stream": false,
        "stream_options": null, "max_completion_tokens": 1, "min_tokens": 0, "stop": [],
        "stop_token_ids": [], "logprobs": false, "top_logprobs": 0, "temperature": 0.7,
        "tools": [{"type": "function"}], "chat_template_kwargs": {"t": true}, "cache_salt": "s",
        "priority": 2, "unknown": {"deep": [1.5]}, "user": null, "max_tokens": 1,
        "ignore_eos": true, "kv_transfer_params": keep_blocks(),
    });
    assert_eq!(prefill(Endpoint::ChatCompletions, body), Some(expected));
}

#[test]
fn a_completions_prefill_adds_no_chat_members() {
    let body = r#"{"model":"m","prompt":[1,2,3],"logprobs":2,"n":1,"stop":null}"#;
    let expected = value!({
        "model": "m", "prompt": [1, 2, 3], "logprobs": null, "n": 1, "stop": null,
        "max_tokens": 1, "stream": false, "ignore_eos": true,
        "kv_transfer_params": keep_blocks(),
    });
    assert_eq!(prefill(Endpoint::Completions, body), Some(expected));
}

#[test]
fn each_apis_prefill_is_limited_to_one_token() {
    let keep = keep_blocks();
    for (endpoint, body, expected) in [
        (
            Endpoint::Responses,
            r#"{"model":"m","input":"a","stream":true,"max_output_tokens":64}"#,
            value!({"model": "m", "input": "a", "stream": false, "max_output_tokens": 1, "store": false,
                "kv_transfer_params": keep}),
        ),
        (
            Endpoint::Messages,
            r#"{"model":"m","messages":[1],"max_tokens":64,"stop_sequences":["x"],"system":"s"}"#,
            value!({"model": "m", "messages": [1], "max_tokens": 1, "stop_sequences": [], "system": "s",
                "stream": false, "kv_transfer_params": keep}),
        ),
        (
            Endpoint::TokensIn,
            r#"{"token_ids":[1,2],"sampling_params":{"max_tokens":9,"temperature":0.70,"stop":"x"},"stream":true}"#,
            value!({"token_ids": [1, 2], "stream": false, "kv_transfer_params": keep, "sampling_params":
                {"max_tokens": 1, "temperature": 0.70, "stop": [], "ignore_eos": true}}),
        ),
        (
            Endpoint::TokensIn,
            r#"{"token_ids":[1,2]}"#,
            value!({"token_ids": [1, 2], "stream": false, "kv_transfer_params": keep, "sampling_params":
                {"max_tokens": 1, "ignore_eos": true}}),
        ),
    ] {
        assert_eq!(prefill(endpoint, body), Some(expected), "{body}");
    }
}

#[test]
fn a_family_splits_only_known_endpoints() {
    for (family, endpoint, splits) in [
        (Family::VllmNixl, Endpoint::Responses, true),
        (Family::VllmNixl, Endpoint::Messages, true),
        (Family::VllmNixl, Endpoint::Generate, false),
        (Family::SglangPd, Endpoint::Generate, true),
        (Family::SglangPd, Endpoint::Responses, false),
        (Family::TrtLlm, Endpoint::Messages, false),
        (Family::VllmNixl, Endpoint::OllamaChat, false),
        (Family::Plain, Endpoint::ChatCompletions, false),
    ] {
        assert_eq!(family.splits(endpoint), splits, "{family:?} {endpoint:?}");
        assert!(!splits || endpoint.can_split());
    }
}

#[test]
fn a_request_that_must_run_colocated_is_not_split() {
    let body = |more: &str| format!(r#"{{"model":"m","prompt":"a"{more}}}"#);
    assert!(prefill(Endpoint::Completions, &body("")).is_some());
    for more in [r#","n":2"#, r#","max_tokens":1"#, r#","kv_transfer_params":{"a":1}"#] {
        assert_eq!(prefill(Endpoint::Completions, &body(more)), None, "{more}");
    }
    assert_eq!(prefill(Endpoint::Embeddings, r#"{"model":"m","input":"a"}"#), None);
    for more in
        [r#","background":true"#, r#","previous_response_id":"r""#, r#","max_output_tokens":1"#]
    {
        let body = format!(r#"{{"model":"m","input":"a"{more}}}"#);
        assert_eq!(prefill(Endpoint::Responses, &body), None, "{more}");
    }
    let plain = bytes(body(""));
    let read = scan(Endpoint::Completions, &plain).expect("a body");
    let legs = Family::Plain.legs(Endpoint::Completions, &plain, &read, &MEETING);
    assert_eq!(legs, Legs::Colocated);
}

#[test]
fn the_decode_body_is_the_clients_with_verbatim_parameters() {
    let body = bytes(r#"{ "model":"m", "prompt":"a",  "temperature":0.70, "x" : [1 ,2] }"#);
    let scan = scan(Endpoint::Completions, &body).expect("a body");
    let params = r#"{"remote_port" : 5600, "f":1.0,"new_field":[ [1] ]}"#;
    let answer = format!(r#"{{"usage":null,"kv_transfer_params": {params} ,"choices":[]}}"#);
    let handoff = Family::VllmNixl.read_prefill(answer.as_bytes()).expect("an answer");
    let expected =
        r#"{ "model":"m", "prompt":"a",  "temperature":0.70, "x" : [1 ,2],"kv_transfer_params":"#;
    let decode = Family::VllmNixl.decode_leg(&body, &scan, &handoff, None).body;
    assert_eq!(decode, format!("{expected}{params} }}"));
}

#[test]
fn without_parameters_the_decode_body_is_the_clients() {
    let body = bytes(r#"{"model":"m","prompt":"a","kv_transfer_params":null}"#);
    let scan = scan(Endpoint::Completions, &body).expect("a body");
    for answer in [r#"{"choices":[],"kv_transfer_params":null}"#, r#"{"choices":[]}"#] {
        let handoff = Family::VllmNixl.read_prefill(answer.as_bytes()).expect("an answer");
        assert_eq!(handoff.params, None);
        let decode = Family::VllmNixl.decode_leg(&body, &scan, &handoff, None).body;
        assert_eq!(decode.as_ptr(), body.as_ptr());
    }
}

#[test]
fn unusable_prefill_answers_are_distinguished() {
    let read = |answer: &str| Family::VllmNixl.read_prefill(answer.as_bytes());
    assert!(matches!(read("<html>"), Err(ProtocolError::Unreadable(_))));
    assert!(matches!(read(r#"{"choices":[]"#), Err(ProtocolError::Unreadable(_))));
    assert_eq!(read(r#"{"kv_transfer_params":[1]}"#), Err(ProtocolError::NotParams));
    let error = ProtocolError::EngineError("boom \"x\"".to_owned());
    assert_eq!(read(r#"{"error":{"message":"boom \"x\"","code":500}}"#), Err(error));
    assert!(read(r#"{"error":null,"kv_transfer_params":{}}"#).is_ok());
}

#[test]
fn both_sglang_legs_get_the_clients_body_and_one_room() {
    let body = bytes(r#"{ "model":"m", "messages":[], "stream":true,"n":2 }"#);
    let read = scan(Endpoint::ChatCompletions, &body).expect("a body");
    let legs = Family::SglangPd.legs(Endpoint::ChatCompletions, &body, &read, &MEETING);
    let expected = r#"{ "model":"m", "messages":[], "stream":true,"n":2,"bootstrap_host":"10.0.0.1","bootstrap_port":8998,"bootstrap_room":9223372036854775807 }"#;
    let both = LegBody::from(bytes(expected));
    let pair = ConcurrentLegs { prefill: both.clone(), decode: both, decode_first: false };
    assert_eq!(legs, Legs::Concurrent(pair));
    assert!(!Family::SglangPd.serves_colocated());
}

fn context(endpoint: Endpoint, body: &Bytes) -> (Scan, Bytes) {
    let read = scan(endpoint, body).expect("a body");
    match Family::TrtLlm.legs(endpoint, body, &read, &MEETING) {
        Legs::PrefillFirst { prefill } => (read, prefill),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_context_leg_changes_only_stream_and_parameters() {
    let body = bytes(
        r#"{"model":"m","prompt":"a","max_tokens":50,"stream":true,"stream_options":{"include_usage":true}}"#,
    );
    let (_, sent) = context(Endpoint::Completions, &body);
    let expected = value!({
        "model": "m", "prompt": "a", "max_tokens": 50, "stream": false, "stream_options": null,
        "disaggregated_params": {"request_type": "context_only",
            "disagg_request_id": 9_223_372_036_854_775_807_u64, "schedule_style": 0},
    });
    assert_eq!(json(sent), expected);
    let low = RendezvousInfo { id: 0, ..MEETING };
    let read = scan(Endpoint::Completions, &body).expect("a body");
    let Legs::PrefillFirst { prefill } =
        Family::TrtLlm.legs(Endpoint::Completions, &body, &read, &low)
    else {
        panic!("split legs")
    };
    assert_eq!(json(prefill)["disaggregated_params"]["disagg_request_id"], value!(1_u64 << 40));
}

/// As specified by docs/spec/engine-protocols.md#trtllm-context-first; order and number formats of
/// the state must be kept.
const CONTEXT: &str = r#"{"id":"cmpl-1","object":"text_completion","created":1,"model":"m","prompt_token_ids":[1, 2,3],
 "choices":[{"index":0,"text":" x","finish_reason":"not_finished","disaggregated_params":{"request_type":"context_only",
 "first_gen_tokens":[7],"ctx_request_id":11,"encoded_opaque_state":"aGk=","draft_tokens":null,"disagg_request_id":1099511627777,
 "ctx_dp_rank":0,"ctx_info_endpoint":null,"schedule_style":0,"weight":1.50}}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}"#;

#[test]
fn a_generation_leg_contains_the_unchanged_state_and_the_prompt_ids() {
    let state = concat!(
        r#"{"request_type":"generation_only","first_gen_tokens":[7],"ctx_request_id":11,"encoded_opaque_state":"aGk=","#,
        r#""draft_tokens":null,"disagg_request_id":1099511627777,"ctx_dp_rank":0,"ctx_info_endpoint":null,"schedule_style":0,"#,
        r#""weight":1.50,"ctx_usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}"#
    );
    let handoff = Family::TrtLlm.read_prefill(CONTEXT.as_bytes()).expect("a context's answer");
    assert_eq!(handoff.usage.map(|usage| usage.prompt), Some(Tokens(3)));
    assert_eq!(handoff.finished, None);
    for (endpoint, body, expected) in [
        (
            Endpoint::Completions,
            r#"{"model":"m","prompt":"a b","stream":true}"#,
            format!(
                r#"{{"model":"m","prompt":[1, 2,3],"stream":true,"disaggregated_params":{state}}}"#
            ),
        ),
        (
            Endpoint::ChatCompletions,
            r#"{"model":"m","messages":[]}"#,
            format!(
                r#"{{"model":"m","messages":[],"disaggregated_params":{state},"prompt_token_ids":[1, 2,3]}}"#
            ),
        ),
    ] {
        let body = bytes(body);
        let (read, _) = context(endpoint, &body);
        assert_eq!(Family::TrtLlm.decode_leg(&body, &read, &handoff, None).body, bytes(expected));
    }
}

#[test]
fn a_finished_context_answer_is_the_clients_answer_or_stream() {
    let answer = CONTEXT.replace("not_finished", "stop");
    let handoff = Family::TrtLlm.read_prefill(answer.as_bytes()).expect("a context's answer");
    let whole = handoff.finished.expect("a finished answer");
    let expected = value!({
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "text": " x", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    });
    assert_eq!(json(&whole), expected);

    let body = bytes(
        r#"{"model":"m","prompt":"a","stream":true,"stream_options":{"include_usage":true}}"#,
    );
    let (read, _) = context(Endpoint::Completions, &body);
    let stream = Family::TrtLlm.as_stream(&whole, &read).expect("valid JSON");
    let seen = SseReader::new(Endpoint::Completions).feed(&stream);
    assert!(seen.done && seen.finished && !seen.error, "{seen:?}");
    assert_eq!((seen.tokens, seen.usage.map(|usage| usage.completion)), (1, Some(Tokens(1))));

    let chat = br#"{"id":"c","created":1,"model":"m","choices":[{"index":0,"finish_reason":"tool_calls","message":
        {"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"f"}}]}}]}"#;
    let body = bytes(r#"{"model":"m","messages":[],"stream":true}"#);
    let (read, _) = context(Endpoint::ChatCompletions, &body);
    let stream = Family::TrtLlm.as_stream(chat, &read).expect("valid JSON");
    let first = String::from_utf8_lossy(&stream).lines().next().map(str::to_owned);
    let first = json(first.expect("a line").trim_start_matches("data: "));
    assert_eq!(first["choices"][0]["delta"]["tool_calls"][0]["index"], value!(0));
}

#[test]
fn a_context_answer_without_both_ids_or_with_several_choices_is_refused() {
    let read = |answer: String| Family::TrtLlm.read_prefill(answer.as_bytes());
    for (from, to) in [
        ("\"ctx_request_id\":11", "\"ctx_request_id\":null"),
        ("\"disagg_request_id\":1099511627777", "\"other\":1"),
        ("\"choices\":[", "\"choices\":[{\"finish_reason\":\"length\"},"),
        ("\"disaggregated_params\"", "\"other_params\""),
    ] {
        assert_eq!(read(CONTEXT.replace(from, to)), Err(ProtocolError::NotParams), "{from}");
    }
    let error = read(r#"{"error":{"message":"busy"}}"#.to_owned());
    assert_eq!(error, Err(ProtocolError::EngineError("busy".to_owned())));
}
