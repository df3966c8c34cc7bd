//! Legs, against exchanges recorded from a real vLLM.

use super::*;
use crate::testing::{CHAT, COMPLETIONS, json};
use crate::{SseReader, scan};
use serde_json::{Value, json as value};
use tidegate_terms::Tokens;

fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

fn prefill(endpoint: Endpoint, body: &str) -> Option<Value> {
    let body = bytes(body);
    let scan = scan(endpoint, &body).expect("a body that can be read");
    match Family::VllmNixl.legs(endpoint, &body, &scan) {
        Legs::PrefillFirst { prefill } => Some(json(prefill)),
        Legs::Whole => None,
    }
}

fn keep_blocks() -> Value {
    value!({"do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
        "remote_block_ids": null, "remote_host": null, "remote_port": null})
}

/// Nulls say nothing: the recorded bodies leave out what ours set to null.
fn without_nulls(mut object: Value) -> Value {
    object.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    object
}

#[test]
fn recorded_exchanges_come_out_as_they_were_recorded() {
    let chat = [(Endpoint::ChatCompletions, CHAT)];
    for (endpoint, text) in chat.into_iter().chain(COMPLETIONS.map(|c| (Endpoint::Completions, c)))
    {
        let record = json(text);
        let body = bytes(record["client_request"].to_string());
        let scan = scan(endpoint, &body).expect("a body that vLLM took");
        let Legs::PrefillFirst { prefill } = Family::VllmNixl.legs(endpoint, &body, &scan) else {
            panic!("it was split");
        };
        assert_eq!(without_nulls(json(prefill)), record["prefill_request"]);

        let answer = record["prefill_response"].to_string();
        let handoff = Family::VllmNixl.read_prefill(answer.as_bytes()).expect("vLLM's answer");
        let prompt = record["prefill_response"]["usage"]["prompt_tokens"].as_u64();
        assert_eq!(handoff.usage.map(|usage| usage.prompt.get()), prompt);
        let decode = Family::VllmNixl.decode_body(&body, &scan, &handoff);
        assert_eq!(json(decode), record["decode_request"]);

        let mut reader = SseReader::new(endpoint);
        let seen = reader.feed(record["decode_sse"].as_str().expect("text").as_bytes());
        let usage = seen.usage.expect("it was asked for");
        assert_eq!(usage.completion, Tokens(u64::from(seen.tokens)));
        assert_eq!(usage.prompt.get(), prompt.unwrap_or_default());
        assert!(seen.done && seen.finished && !seen.error);
    }
}

#[test]
fn a_chat_prefill_makes_one_token_and_keeps_all_that_renders_the_prompt() {
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
fn a_completions_prefill_adds_nothing_that_is_chat_only() {
    let body = r#"{"model":"m","prompt":[1,2,3],"logprobs":2,"n":1,"stop":null}"#;
    let expected = value!({
        "model": "m", "prompt": [1, 2, 3], "logprobs": null, "n": 1, "stop": null,
        "max_tokens": 1, "stream": false, "ignore_eos": true,
        "kv_transfer_params": keep_blocks(),
    });
    assert_eq!(prefill(Endpoint::Completions, body), Some(expected));
}

#[test]
fn what_must_run_whole_is_not_split() {
    let body = |more: &str| format!(r#"{{"model":"m","prompt":"a"{more}}}"#);
    assert!(prefill(Endpoint::Completions, &body("")).is_some());
    for more in [r#","n":2"#, r#","max_tokens":1"#, r#","kv_transfer_params":{"a":1}"#] {
        assert_eq!(prefill(Endpoint::Completions, &body(more)), None, "{more}");
    }
    assert_eq!(prefill(Endpoint::Embeddings, r#"{"model":"m","input":"a"}"#), None);
    assert_eq!(prefill(Endpoint::Responses, r#"{"model":"m","input":"a"}"#), None);
    let plain = bytes(body(""));
    let read = scan(Endpoint::Completions, &plain).expect("a body");
    assert_eq!(Family::Plain.legs(Endpoint::Completions, &plain, &read), Legs::Whole);
}

#[test]
fn the_decode_body_is_the_clients_and_the_parameters_byte_for_byte() {
    let body = bytes(r#"{ "model":"m", "prompt":"a",  "temperature":0.70, "x" : [1 ,2] }"#);
    let scan = scan(Endpoint::Completions, &body).expect("a body");
    let params = r#"{"remote_port" : 5600, "f":1.0,"new_field":[ [1] ]}"#;
    let answer = format!(r#"{{"usage":null,"kv_transfer_params": {params} ,"choices":[]}}"#);
    let handoff = Family::VllmNixl.read_prefill(answer.as_bytes()).expect("an answer");
    let expected =
        r#"{ "model":"m", "prompt":"a",  "temperature":0.70, "x" : [1 ,2],"kv_transfer_params":"#;
    let decode = Family::VllmNixl.decode_body(&body, &scan, &handoff);
    assert_eq!(decode, format!("{expected}{params} }}"));
}

#[test]
fn without_parameters_the_decode_body_is_the_clients_own() {
    let body = bytes(r#"{"model":"m","prompt":"a","kv_transfer_params":null}"#);
    let scan = scan(Endpoint::Completions, &body).expect("a body");
    for answer in [r#"{"choices":[],"kv_transfer_params":null}"#, r#"{"choices":[]}"#] {
        let handoff = Family::VllmNixl.read_prefill(answer.as_bytes()).expect("an answer");
        assert_eq!(handoff.params, None);
        let decode = Family::VllmNixl.decode_body(&body, &scan, &handoff);
        assert_eq!(decode.as_ptr(), body.as_ptr());
    }
}

#[test]
fn what_is_no_prefill_answer_is_told_apart() {
    let read = |answer: &str| Family::VllmNixl.read_prefill(answer.as_bytes());
    assert!(matches!(read("<html>"), Err(ProtocolError::Unreadable(_))));
    assert!(matches!(read(r#"{"choices":[]"#), Err(ProtocolError::Unreadable(_))));
    assert_eq!(read(r#"{"kv_transfer_params":[1]}"#), Err(ProtocolError::NotParams));
    let error = ProtocolError::EngineError("boom \"x\"".to_owned());
    assert_eq!(read(r#"{"error":{"message":"boom \"x\"","code":500}}"#), Err(error));
    assert!(read(r#"{"error":null,"kv_transfer_params":{}}"#).is_ok());
}
