//! Chat templates against transformers' rendering, and counts against vLLM's.

use super::{ModelTokenizer, TokenizerError, UnixTime};
use crate::chain::tests::{scanned, testdata};
use serde_json::{Value as Json, json};
use tidegate_engine::Endpoint;

fn tiny() -> ModelTokenizer {
    with_config(&testdata("tiny_llama_config.json"))
}

fn with_config(config: &[u8]) -> ModelTokenizer {
    ModelTokenizer::load(&testdata("tiny_llama.json"), Some(config), None).unwrap()
}

fn with_template(template: &str) -> ModelTokenizer {
    let config = br#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#;
    ModelTokenizer::load(&testdata("tiny_llama.json"), Some(config), Some(template)).unwrap()
}

/// Renders a body at noon of 23 November 2026.
fn render(tokenizer: &ModelTokenizer, body: &str) -> Result<String, String> {
    let scan = scanned(Endpoint::ChatCompletions, body.as_bytes());
    tokenizer.render(&scan, body.as_bytes(), UnixTime(1_795_435_200))
}

#[test]
fn templates_render_as_in_transformers() {
    let cases: Vec<Json> = serde_json::from_slice(&testdata("templates.json")).unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let tokenizer = with_template(case["template"].as_str().unwrap());
        assert_eq!(tokenizer.notes(), [""; 0], "{}", case["name"]);
        let rendered = render(&tokenizer, case["body"].as_str().unwrap());
        assert_eq!(
            rendered.as_deref().ok(),
            case["expected"].as_str(),
            "{}: {rendered:?}",
            case["name"]
        );
    }
}

#[test]
fn a_request_is_counted_as_by_vllm() {
    let tokenizer = tiny();
    let cases: Vec<Json> = serde_json::from_slice(&testdata("vllm_0.32.0_counts.json")).unwrap();
    let chats = cases.iter().filter(|case| !case["body"]["messages"].is_null());
    let mut checked = 0;
    for case in chats {
        let body = case["body"].to_string();
        let endpoint = Endpoint::of(case["path"].as_str().unwrap()).unwrap();
        let scan = scanned(endpoint, body.as_bytes());
        let ids = tokenizer.encode_chat(&scan, body.as_bytes(), 0).unwrap();
        assert_eq!(Some(ids.len() as u64), case["prompt_tokens"].as_u64());
        if let Some(expected) = case["ids"].as_array() {
            assert_eq!(json!(ids), json!(expected));
        }
        checked += 1;
    }
    assert!(checked >= 2);
}

#[test]
fn a_repeated_conversation_has_the_same_tokens_from_the_cache() {
    let (fresh, cached) = (tiny(), tiny().with_cache(1 << 20));
    let mut messages = vec![json!({"role": "system", "content": "You are brief. 潮汐 🌊"})];
    for turn in 0..6 {
        messages.push(json!({"role": "user", "content": format!("The tide at {turn}? <s>")}));
        let body = json!({"model": "m", "messages": messages}).to_string();
        let scan = scanned(Endpoint::ChatCompletions, body.as_bytes());
        let ids = |model: &ModelTokenizer| model.encode_chat(&scan, body.as_bytes(), 0).unwrap();
        assert_eq!(ids(&cached), ids(&fresh));
        messages.push(json!({"role": "assistant", "content": format!("At {turn} it turns.")}));
    }
    let stats = cached.tokenizer.segment_cache_stats().unwrap();
    assert!(stats.hits > 10, "{stats:?}");
}

#[test]
fn the_date_is_the_callers() {
    let tokenizer =
        with_template("{{ strftime_now('%d %b %Y') }}{% if strftime_now is defined %}!{% endif %}");
    let body = json!({"model": "m", "messages": [{"role": "user", "content": ""}]});
    assert_eq!(render(&tokenizer, &body.to_string()).unwrap(), "23 Nov 2026!");
}

#[test]
fn requests_that_vllm_versions_read_differently_are_inexact() {
    let tokenizer = with_template("{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}");
    let user = |content: Json| json!([{"role": "user", "content": content}]);
    for (messages, more, sure) in [
        (user(json!("hi")), json!({}), true),
        (user(json!([{"type": "text", "text": "hi"}, "there"])), json!({}), true),
        (user(json!([{"type": "image_url", "image_url": {"url": "x"}}])), json!({}), false),
        (user(json!([{"type": "thought", "text": "x"}])), json!({}), false),
        (user(json!("hi")), json!({"tools": []}), false),
        (json!([{"role": "developer", "content": "x"}]), json!({}), false),
        (json!([{"role": "system", "content": "x-anthropic-billing-header: 1"}]), json!({}), false),
        (json!([{"role": "assistant", "content": "", "tool_calls": []}]), json!({}), false),
    ] {
        let mut body = json!({"model": "m", "messages": messages});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let body = body.to_string();
        let scan = scanned(Endpoint::ChatCompletions, body.as_bytes());
        let encoded = tokenizer.chat(&scan, body.as_bytes(), UnixTime(0)).unwrap();
        assert_eq!(encoded.exact, sure, "{body}");
    }
    let harmony = with_template("<|start|>user<|channel|>{{ messages[0].content }}");
    let body = br#"{"model": "m", "messages": [{"role": "user", "content": "a"}]}"#;
    let scan = scanned(Endpoint::ChatCompletions, body);
    assert!(
        !harmony.chat(&scan, body, UnixTime(0)).unwrap().exact,
        "vLLM does not use the template"
    );
}

#[test]
fn messages_that_the_template_refuses_are_not_counted() {
    let strict = with_template("{{ raise_exception('no') }}");
    let endless = with_template(
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}",
    );
    let broken =
        ModelTokenizer::load(&testdata("tiny_llama.json"), None, Some("{% if %}")).unwrap();
    assert!(!broken.has_template());
    assert!(broken.notes()[0].starts_with("chat template: "), "{:?}", broken.notes());
    for tokenizer in [strict, endless, broken] {
        let body = br#"{"model": "m", "messages": [{"role": "user", "content": "a"}]}"#;
        let scan = scanned(Endpoint::ChatCompletions, body);
        assert_eq!(tokenizer.encode_chat(&scan, body, 0), None);
    }
}

#[test]
fn malformed_files_are_named_in_the_error() {
    let json = testdata("tiny_llama.json");
    for (tokenizer, config, file) in [
        (&b"{"[..], None, "tokenizer.json"),
        (&json[..], Some(&b"[1"[..]), "tokenizer_config.json"),
    ] {
        let error = ModelTokenizer::load(tokenizer, config, None).unwrap_err();
        assert!(
            matches!(&error, TokenizerError::Unreadable { file: at, .. } if *at == file),
            "{error}"
        );
    }
}

#[test]
fn tokens_of_the_config_file_are_added() {
    let config = json!({"added_tokens_decoder": {
        "4096": {"content": "<|image_pad|>", "special": true, "normalized": false},
        "0": {"content": "<|bos|>", "special": true, "normalized": false},
    }});
    let tokenizer = with_config(config.to_string().as_bytes());
    assert_eq!(tokenizer.encode_text("<|image_pad|><|bos|>", false), Some(vec![4096, 0]));
}

#[test]
fn a_disagreement_on_special_tokens_makes_completions_inexact() {
    let plain = tiny();
    assert!(plain.completion("a", true).unwrap().exact);
    let differs = with_config(br#"{"bos_token": "<|bos|>", "add_bos_token": true}"#);
    assert!(!differs.notes().is_empty());
    assert!(!differs.completion("a", true).unwrap().exact);
    assert!(differs.completion("a", false).unwrap().exact);
}

/// Expected counts are those of vLLM 0.32 for these bodies and this model.
#[test]
fn responses_and_messages_are_counted_as_by_vllm() {
    let tokenizer = tiny();
    let tide = "The tide comes in at the gate, ".repeat(20);
    let (responses, messages) = (Endpoint::Responses, Endpoint::Messages);
    let user = |content: Json| json!({"role": "user", "content": content});
    let yes = json!({"role": "assistant", "content": "yes"});
    for (endpoint, mut body, counted) in [
        (responses, json!({"input": tide}), 265),
        (responses, json!({"instructions": "Be brief.", "input": [user(json!(tide))]}), 273),
        (
            responses,
            json!({"input": [user(json!([{"type": "input_text", "text": tide}])), yes, user(json!("more"))]}),
            272,
        ),
        (messages, json!({"messages": [user(json!(tide))]}), 265),
        (messages, json!({"system": "Be brief.", "messages": [user(json!(tide))]}), 273),
        (
            messages,
            json!({"system": [{"type": "text", "text": "Be"}, {"type": "text", "text": " brief."}],
                "messages": [user(json!([{"type": "text", "text": tide}, {"type": "text", "text": "x"}])), yes,
                    user(json!("z"))]}),
            281,
        ),
    ] {
        body["model"] = json!("tiny");
        let body = body.to_string();
        let scan = scanned(endpoint, body.as_bytes());
        let encoded = tokenizer.chat_of_other_api(&scan, body.as_bytes(), UnixTime(0)).unwrap();
        assert_eq!(encoded.ids.len(), counted, "{body}");
    }
}

#[test]
fn a_long_text_has_the_same_count_in_pieces() {
    let tokenizer = tiny();
    let text = "The quick brown fox jumps over 13 lazy dogs.\nAnd then, äöü 日本: \t x = f(y);\n "
        .repeat(20_000);
    let whole = tokenizer.tokenizer.encode_with_special_tokens(&text, true).unwrap();
    let (ids, cuts) = tokenizer.encode(&text, true).unwrap();
    assert!(cuts >= 4, "{cuts}");
    assert_eq!(ids, whole);
    assert!(tokenizer.fewest_tokens(text.len()) <= ids.len() as u64);
}
