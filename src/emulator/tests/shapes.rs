//! Wire format against recordings of vLLM 0.32 (except ids, times and texts).

use http::Method;
use serde_json::{Value, json};
use tidegate_engine::{Endpoint, SseReader};

use super::client::*;
use crate::{EmulatorConfig, start};

/// Returns the members of an object in the order of the JSON text.
fn members(text: &str) -> Vec<String> {
    let members: serde_json::Map<String, Value> = serde_json::from_str(text).unwrap();
    let mut at: Vec<(usize, String)> = members
        .keys()
        .map(|key| (text.find(&format!("\"{key}\":")).unwrap(), key.clone()))
        .collect();
    at.sort();
    at.into_iter().map(|(_, key)| key).collect()
}

/// Replaces the creation time by 1.
fn timeless(text: &str) -> String {
    let mut parts = text.split("\"created\":");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        all = format!("{all}\"created\":1{rest}");
    }
    all
}

fn chat(output: u64, stream: bool) -> Value {
    json!({
        "model": "tiny", "messages": [{ "role": "user", "content": "What moves the tide?" }],
        "max_tokens": output, "stream": stream, "ignore_eos": true, "temperature": 0,
    })
}

#[tokio::test]
async fn the_tokens_of_a_burst_leave_in_one_chunk_and_count_exactly() {
    let fleet = start(EmulatorConfig { bursts: 3.0, ..config() }).await.unwrap();
    let path = "/v1/chat/completions";
    let whole = post(fleet.addresses()[0], path, &chat(60, false)).await.words(0);
    let mut body = chat(60, true);
    body["stream_options"] = json!({ "include_usage": true, "continuous_usage_stats": true });
    let answer = post(fleet.addresses()[0], path, &body).await;
    assert_eq!(answer.words(0), whole);
    let events = answer.events();
    let counts: Vec<u64> =
        events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!(counts.last(), Some(&60));
    // One role chunk, the token chunks and one usage chunk: at least two tokens a chunk on average.
    assert!(events.len() <= 32, "{counts:?}");
    assert!(counts.windows(2).any(|pair| pair[1] - pair[0] > 1), "{counts:?}");
    fleet.stop().await;
}

#[tokio::test]
async fn streamed_chat_is_vllms_byte_for_byte() {
    let fleet = two().await;
    let path = "/v1/chat/completions";
    let mut body = chat(3, true);
    body["stream_options"] = json!({ "include_usage": true, "continuous_usage_stats": true });
    let id = [("x-request-id", "chat-1")];
    let answer = send(fleet.addresses()[0], Method::POST, path, &id, body.to_string()).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    let whole = post(fleet.addresses()[1], path, &chat(3, false)).await.words(0);
    let words: Vec<&str> = whole.split_inclusive(' ').collect();
    assert_eq!(answer.words(0), whole, "{words:?}");
    let head = r#"data: {"id":"chatcmpl-chat-1","object":"chat.completion.chunk","created":1,"model":"tiny","choices":["#;
    let usage = |n: u64| {
        format!(
            r#""usage":{{"prompt_tokens":12,"total_tokens":{},"completion_tokens":{n},"completion_tokens_details":null}}"#,
            12 + n
        )
    };
    let word = |i: usize| answer.events()[i + 1]["choices"][0]["delta"]["content"].clone();
    let expected = [
        format!(
            r#"{head}{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}],{},"prompt_token_ids":null,"prompt_text":null}}"#,
            usage(0)
        ),
        format!(
            r#"{head}{{"index":0,"delta":{{"content":{}}},"logprobs":null,"finish_reason":null,"token_ids":null}}],{}}}"#,
            word(0),
            usage(1)
        ),
        format!(
            r#"{head}{{"index":0,"delta":{{"content":{}}},"logprobs":null,"finish_reason":null,"token_ids":null}}],{}}}"#,
            word(1),
            usage(2)
        ),
        format!(
            r#"{head}{{"index":0,"delta":{{"content":{}}},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}}],{}}}"#,
            word(2),
            usage(3)
        ),
        format!(
            r#"{head}],"usage":{{"prompt_tokens":12,"total_tokens":15,"completion_tokens":3}},"system_fingerprint":"vllm-0.32.0-emulated"}}"#
        ),
        "data: [DONE]".to_owned(),
    ];
    assert_eq!(timeless(&answer.text), expected.join("\n\n") + "\n\n");
    fleet.stop().await;
}

#[tokio::test]
async fn streamed_text_is_vllms_byte_for_byte() {
    let fleet = two().await;
    let id = [("x-request-id", "req-1")];
    let mut body = completion("text", 10, 2, true);
    body["stream_options"] = json!({ "include_usage": true });
    let path = "/v1/completions";
    let answer = send(fleet.addresses()[0], Method::POST, path, &id, body.to_string()).await;
    let head = r#"data: {"id":"cmpl-req-1","object":"text_completion","created":1,"model":"tiny","choices":["#;
    let word = |i: usize| answer.events()[i]["choices"][0]["text"].clone();
    let expected = [
        format!(
            r#"{head}{{"index":0,"text":{},"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}}]}}"#,
            word(0)
        ),
        format!(
            r#"{head}{{"index":0,"text":{},"logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_token_ids":null,"token_ids":null}}]}}"#,
            word(1)
        ),
        format!(
            r#"{head}],"usage":{{"prompt_tokens":10,"total_tokens":12,"completion_tokens":2}},"system_fingerprint":"vllm-0.32.0-emulated"}}"#
        ),
        "data: [DONE]".to_owned(),
    ];
    assert_eq!(timeless(&answer.text), expected.join("\n\n") + "\n\n");
    fleet.stop().await;
}

#[tokio::test]
async fn whole_answers_have_the_recorded_members() {
    let fleet = two().await;
    let answer = post(fleet.addresses()[0], "/v1/chat/completions", &chat(2, false)).await;
    let expected = [
        "id",
        "object",
        "created",
        "model",
        "choices",
        "service_tier",
        "system_fingerprint",
        "usage",
        "prompt_logprobs",
        "prompt_token_ids",
        "prompt_text",
        "kv_transfer_params",
        "ec_transfer_params",
        "metrics",
    ];
    assert_eq!(members(&answer.text), expected);
    let choice = &answer.json()["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(choice["message"]["content"].as_str().unwrap().starts_with(' '));
    assert_eq!(answer.json()["usage"]["total_tokens"], 14);

    let answer = post(fleet.addresses()[0], "/v1/completions", &completion("w", 9, 2, false)).await;
    let expected = [
        "id",
        "object",
        "created",
        "model",
        "choices",
        "service_tier",
        "system_fingerprint",
        "usage",
        "kv_transfer_params",
        "ec_transfer_params",
        "metrics",
    ];
    assert_eq!(members(&answer.text), expected);
    fleet.stop().await;
}

#[tokio::test]
async fn a_hand_off_has_the_recorded_members() {
    let fleet = two().await;
    let ask = json!({ "do_remote_decode": true, "do_remote_prefill": false });
    let body = with_kv(completion("h", 33, 1, false), &ask).to_string();
    let headers = [("x-request-id", "req-0"), ("endpoint-load-metrics-format", "JSON")];
    let address = fleet.addresses()[0];
    let answer = send(address, Method::POST, "/v1/completions", &headers, body).await;
    let load = answer.headers["endpoint-load-metrics"].to_str().unwrap();
    assert!(load.starts_with("JSON {\"named_metrics\": {\"num_requests_waiting\": 0.0"), "{load}");
    let params = &answer.json()["kv_transfer_params"];
    let expected = [
        "do_remote_prefill",
        "do_remote_decode",
        "remote_block_ids",
        "remote_engine_id",
        "remote_request_id",
        "remote_host",
        "remote_port",
        "tp_size",
        "dcp_size",
        "pp_size",
        "remote_num_tokens",
        "remote_blocks_expiry_time",
        "transfer_mode",
        "remote_prefill_cached_tokens",
    ];
    let text = &answer.text[answer.text.find("{\"do_remote").unwrap()..];
    assert_eq!(members(&text[..=text.find('}').unwrap()]), expected);
    assert_eq!(params["remote_block_ids"][0].as_array().unwrap().len(), 3, "16 tokens each");
    assert_eq!(params["remote_num_tokens"], 33);
    assert_eq!(params["remote_engine_id"], fleet.engine_id(0));
    let request = params["remote_request_id"].as_str().unwrap();
    assert!(request.starts_with("cmpl-req-0-0-") && request.len() == "cmpl-req-0-0-".len() + 8);
    assert_eq!(answer.json()["id"], "cmpl-req-0");
    fleet.stop().await;
}

#[tokio::test]
async fn a_streamed_prefill_leg_has_its_hand_off_in_the_last_chunk() {
    let fleet = two().await;
    let ask = json!({ "do_remote_decode": true });
    let (p, d) = (fleet.addresses()[0], fleet.addresses()[1]);
    let answer = post(p, "/v1/completions", &with_kv(completion("s", 20, 1, true), &ask)).await;
    let params = &answer.events()[0]["kv_transfer_params"];
    assert_eq!(params["remote_num_tokens"], 20);
    let decode = post(d, "/v1/completions", &with_kv(completion("s", 20, 3, false), params)).await;
    assert_eq!((decode.status.as_u16(), fleet.stats(1).transfers_in), (200, 1));
    let long = post(p, "/v1/completions", &with_kv(completion("s", 20, 2, false), &ask)).await;
    assert!(long.json()["kv_transfer_params"].is_null(), "max_tokens was not reduced to one");
    fleet.stop().await;
}

#[tokio::test]
async fn several_answers_and_several_prompts_have_their_own_indices() {
    let fleet = two().await;
    let mut body = completion("n", 10, 5, true);
    body["prompt"] = json!(["one prompt", "another prompt"]);
    body["n"] = json!(2);
    let streamed = post(fleet.addresses()[0], "/v1/completions", &body).await;
    body["stream"] = json!(false);
    let whole = post(fleet.addresses()[1], "/v1/completions", &body).await;
    let texts: Vec<String> = (0..4).map(|i| whole.words(i)).collect();
    assert_eq!(texts, (0..4).map(|i| streamed.words(i)).collect::<Vec<_>>());
    let different: std::collections::BTreeSet<_> = texts.iter().collect();
    assert_eq!(different.len(), 4);
    assert_eq!(whole.json()["usage"]["completion_tokens"], 20);
    fleet.stop().await;
}

#[tokio::test]
async fn the_proxys_reader_counts_every_token() {
    let fleet = two().await;
    let cases = [
        ("/v1/chat/completions", Endpoint::ChatCompletions, chat(40, true)),
        ("/v1/completions", Endpoint::Completions, completion("count", 10, 40, true)),
    ];
    for (path, endpoint, body) in cases {
        let answer = post(fleet.addresses()[0], path, &body).await;
        assert!(answer.events().iter().all(|event| event["usage"].is_null()));
        let mut reader = SseReader::new(endpoint);
        let seen = reader.feed(answer.text.as_bytes());
        assert_eq!((seen.tokens, seen.done, seen.error), (40, true, false));
    }
    fleet.stop().await;
}
