//! Request bodies as values: accepted forms, and messages of refusals.

use super::*;
use crate::config::EmulatedEngine;

fn config() -> EmulatorConfig {
    EmulatorConfig { model: "tiny".to_owned(), max_model_len: 4096, ..EmulatorConfig::default() }
}

fn refused(chat: bool, body: &str) -> (u16, String, Option<String>) {
    let refusal =
        read(&config(), EmulatedEngine::Vllm, chat, body.as_bytes()).expect_err(body).refusal;
    (refusal.status.as_u16(), refusal.message, refusal.param)
}

fn accepted(chat: bool, body: &str) -> GenerationRequest {
    read(&config(), EmulatedEngine::Vllm, chat, body.as_bytes())
        .map_err(|refused| refused.refusal)
        .expect(body)
}

#[test]
fn refusals_read_as_in_the_transcripts() {
    let too_long = format!(r#"{{"model":"tiny","prompt":"{}"}}"#, "a".repeat(4 * 4097));
    let cases = [
        (
            true,
            r#"{"model":"tiny","messages":"x"}"#,
            400,
            "1 validation error:\n  {'type': 'list_type', 'loc': 'body.messages', 'msg': 'Input should be a valid list', 'input': 'x'}",
            Some("body.messages"),
        ),
        (
            true,
            r#"{"model":"nope","messages":[{"role":"user","content":"x"}]}"#,
            404,
            "The model `nope` does not exist. Valid aliases: tiny.",
            Some("model"),
        ),
        (
            false,
            &too_long,
            400,
            "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=4097)",
            Some("input_tokens"),
        ),
        (
            false,
            r#"{"model":"tiny","prompt":"a","max_tokens":1,"stream_options":{"include_usage":true}}"#,
            400,
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
            Some("stream_options"),
        ),
        (
            false,
            r#"{"model":"tiny","prompt":"a","max_tokens":1,"min_tokens":5}"#,
            400,
            "min_tokens must be less than or equal to max_tokens=1, got 5.",
            None,
        ),
        (
            false,
            r#"{"model":"tiny","prompt":"a","max_tokens":0}"#,
            400,
            "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
            Some("max_tokens"),
        ),
    ];
    for (chat, body, status, message, param) in cases {
        let expected = (status, message.to_owned(), param.map(str::to_owned));
        assert_eq!(refused(chat, body), expected, "{body}");
    }
}

#[test]
fn wrong_types_and_broken_json_are_refused() {
    for body in [
        "",
        "{",
        "[]",
        r#"{"prompt":"a","stream":"maybe"}"#,
        r#"{"prompt":"a","max_tokens":"7"}"#,
        r#"{"prompt":"a","n":0}"#,
        r#"{"prompt":7}"#,
        r#"{"prompt":[]}"#,
        r#"{"prompt":["a",[1,"b"]]}"#,
        r#"{"max_tokens":7}"#,
        r#"{"prompt":"a","kv_transfer_params":7}"#,
        r#"{"prompt":"a","stream":true,"stream_options":7}"#,
    ] {
        assert_eq!(refused(false, body).0, 400, "{body}");
    }
    for body in [r#"{"messages":[]}"#, r#"{"messages":[{"content":7}]}"#, r#"{"prompt":"a"}"#] {
        assert_eq!(refused(true, body).0, 400, "{body}");
    }
}

#[test]
fn prompts_are_texts_ids_or_lists() {
    let tokens = |body: &str| -> Vec<u64> {
        accepted(false, body).prompts.iter().map(TokenizedPrompt::tokens).collect()
    };
    assert_eq!(tokens(r#"{"prompt":"12345"}"#), [2]);
    assert_eq!(tokens(r#"{"prompt":[5,6,7,8]}"#), [4]);
    assert_eq!(tokens(r#"{"prompt":["1234","12345"]}"#), [1, 2]);
    assert_eq!(tokens(r#"{"prompt":[[1,2],[3]]}"#), [2, 1]);
    let plain = accepted(true, r#"{"messages":[{"role":"user","content":"héllo\n"}]}"#);
    let parts = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"héllo"},{"type":"text","text":"\n"}]}]}"#;
    assert_eq!(plain.prompts, accepted(true, parts).prompts);
    assert_eq!(plain.prompts[0].tokens(), (25 + 7_u64).div_ceil(4));
}

#[test]
fn the_length_is_max_tokens_or_the_engines_own() {
    let length = |body: &str| {
        let ask = accepted(false, body);
        (ask.output, ask.finish)
    };
    assert_eq!(length(r#"{"prompt":"a","max_tokens":7}"#), (7, "length"));
    assert_eq!(length(r#"{"prompt":"a"}"#), (128, "stop"));
    assert_eq!(length(r#"{"prompt":"a","ignore_eos":true}"#), (128, "length"));
    assert_eq!(length(r#"{"prompt":"a","min_tokens":200}"#), (200, "stop"));
    assert_eq!(length(r#"{"prompt":"a","max_tokens":9999}"#), (4095, "length"));
    let chat = accepted(
        true,
        r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":7,"max_completion_tokens":9}"#,
    );
    assert_eq!(chat.output, 9);
}

#[test]
fn the_last_of_two_members_counts_and_a_refusal_keeps_the_hand_off() {
    let handoff = r#""kv_transfer_params":{"do_remote_prefill":true,"remote_engine_id":"e","remote_request_id":"r","remote_host":"h","remote_port":1}"#;
    let body = format!(r#"{{"prompt":"a","max_tokens":0,"max_tokens":3,{handoff}}}"#);
    let ask = accepted(false, &body);
    assert_eq!(ask.output, 3);
    let remote = Box::new(Remote {
        engine_id: "e".to_owned(),
        request_id: "r".to_owned(),
        host: "h".to_owned(),
        port: 1,
        meets: false,
    });
    assert_eq!(ask.handoff, RequestedHandoff::Consume(remote.clone()));
    let body = format!(r#"{{"prompt":"a","max_tokens":0,{handoff}}}"#);
    let refused =
        read(&config(), EmulatedEngine::Vllm, false, body.as_bytes()).expect_err("max_tokens");
    assert_eq!(refused.handoff, RequestedHandoff::Consume(remote));
    let plain = EmulatorConfig { kind: EmulatedEngine::Plain, ..config() };
    let body = format!(r#"{{"prompt":"a",{handoff}}}"#);
    assert_eq!(
        read(&plain, EmulatedEngine::Plain, false, body.as_bytes()).expect("plain").handoff,
        RequestedHandoff::None
    );
}
