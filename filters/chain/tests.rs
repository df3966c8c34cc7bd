//! The chain as a whole: every refusal, their order, and accepted requests.

use super::*;
use crate::{Calibrations, ModelEntry, ModelTokenizer, Tenant};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value as Json, json};
use std::path::Path;
use std::sync::Arc;
use tidegate_engine::{Endpoint, EngineKind, Kinds, Scan};
use tidegate_scheduler::cost::ByteEstimator;
use tidegate_types::Tokens;

#[allow(clippy::disallowed_methods, reason = "the one place where tests read their files")]
pub(crate) fn testdata(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)).unwrap()
}

pub(crate) fn scanned(endpoint: Endpoint, body: &[u8]) -> Scan {
    tidegate_engine::scan(endpoint, body).unwrap()
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// `tiny` has a tokenizer and a context length of 32 tokens, `plain` has neither.
fn directory() -> Directory {
    let config = testdata("tiny_llama_config.json");
    let tiny = ModelTokenizer::load(&testdata("tiny_llama.json"), Some(&config), None).unwrap();
    let tiny = ModelEntry { max_model_len: Some(Tokens(32)), tokenizer: Some(Arc::new(tiny)) };
    let models = [("tiny".into(), tiny), ("plain".into(), ModelEntry::default())].into();
    Directory { models, aliases: [("small".into(), "tiny".into())].into(), ..Directory::default() }
}

/// A request with defaults.
#[derive(Clone)]
struct Sent {
    method: Method,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: String,
}

impl Sent {
    fn post(path: &'static str, body: impl ToString) -> Sent {
        Sent { method: Method::POST, path, headers: &[], body: body.to_string() }
    }

    fn with(self, headers: &'static [(&'static str, &'static str)]) -> Sent {
        Sent { headers, ..self }
    }

    fn admit(&self, chain: &Chain, directory: &Directory) -> Result<Accepted, ApiError> {
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let body = Bytes::from(self.body.clone());
        let (path, query) = self.path.split_once('?').unwrap_or((self.path, ""));
        let arrival =
            RequestParts { method: &self.method, path, query, headers: &headers, body: &body };
        let fresh = FreshIds::from_random(1, 2, 3);
        let (bytes, calibrations) = (ByteEstimator::new(), Calibrations::new());
        let estimator = PromptEstimator { bytes: &bytes, calibrations: &calibrations };
        let head = chain.admit_head(directory, &arrival.head())?;
        chain.admit(directory, estimator, &head, &arrival, &fresh)
    }

    fn accepted(&self) -> Accepted {
        self.admit(&Chain::new(small_blocks()), &directory()).unwrap()
    }
}

fn small_blocks() -> ChainParams {
    ChainParams { prefix_block: 4, handoff: crate::HandoffTrust::Any, ..ChainParams::default() }
}

fn keyed() -> Chain {
    let key = |name: &str, key: &str| ApiKey { name: name.into(), key: key.into() };
    let keys = vec![key("red", "sk-red"), key("blue", "sk-blue")];
    Chain::new(ChainParams { keys, body_max: 200, ..ChainParams::default() })
}

const KEY: &[(&str, &str)] = &[("authorization", "Bearer sk-red")];

const LONG: &[(&str, &str)] = &[KEY[0], ("content-length", "201")];
const ZIPPED: &[(&str, &str)] = &[KEY[0], ("content-encoding", "gzip")];

fn chat(model: &str, words: usize) -> Json {
    let content = "one ".repeat(words);
    json!({"model": model, "messages": [{"role": "user", "content": content}]})
}

/// Asserts the refusal of a request by a chain with keys: status, type and parameter.
#[track_caller]
fn refused(sent: &Sent, status: u16, kind: &str, param: Option<&str>) {
    let error = sent.admit(&keyed(), &directory()).unwrap_err();
    let seen = (error.status, error.kind, error.param);
    assert_eq!(seen, (status, kind, param), "{} {}: {error}", sent.path, sent.body);
}

fn keyed_chat(body: &str) -> Sent {
    Sent::post(CHAT, body).with(KEY)
}

const INVALID: &str = "invalid_request_error";
const NOT_FOUND: &str = "not_found_error";

#[test]
fn requests_without_a_valid_key_are_refused() {
    let hello = chat("tiny", 1).to_string();
    for sent in [
        Sent::post(CHAT, &hello),
        keyed_chat(&hello).with(&[("authorization", "Bearer sk-re")]),
        keyed_chat(&hello).with(&[("authorization", "Basic sk-red")]),
        keyed_chat(&hello).with(&[("authorization", "Bearer ")]),
        keyed_chat(&hello).with(&[("x-api-key", "")]),
        // Order: without a key, paths are not revealed; without a known path, methods are not.
        Sent::post("/nowhere", "{"),
    ] {
        refused(&sent, 401, "authentication_error", None);
    }
}

#[test]
fn paths_methods_and_bodies_are_refused_by_their_status() {
    let hello = chat("tiny", 1).to_string();
    let get = |path| Sent { method: Method::GET, ..Sent::post(path, "").with(KEY) };
    refused(&get("/nowhere"), 404, NOT_FOUND, None);
    refused(&get(CHAT), 405, INVALID, None);
    refused(&Sent::post("/v1/models", "").with(KEY), 405, INVALID, None);
    refused(&keyed_chat(&" ".repeat(201)), 413, INVALID, None);
    refused(&keyed_chat(&hello).with(LONG), 413, INVALID, None);
    refused(&keyed_chat(&hello).with(ZIPPED), 415, INVALID, Some("content-encoding"));
    for body in ["", "{", "[]"] {
        refused(&keyed_chat(body), 400, INVALID, None);
    }
}

#[test]
fn unknown_models_and_exceeded_context_lengths_name_their_parameter() {
    let completion = |body: Json| Sent::post(COMPLETIONS, body).with(KEY);
    let unpaired = r#"{"model": "\ud800", "messages": []}"#;
    for sent in [
        keyed_chat(unpaired),
        keyed_chat(&chat("nope", 1).to_string()),
        completion(json!({"model": "nope", "prompt": "x"})),
    ] {
        refused(&sent, 404, NOT_FOUND, Some("model"));
    }
    refused(&keyed_chat(&chat("tiny", 29).to_string()), 400, INVALID, Some("messages"));
    for prompt in [json!("a b ".repeat(16)), json!(vec![7; 32]), json!(["a", "a b ".repeat(16)])] {
        let sent = completion(json!({"model": "tiny", "prompt": prompt}));
        refused(&sent, 400, INVALID, Some("prompt"));
    }
    let long_output = completion(json!({"model": "tiny", "prompt": "a", "max_tokens": 33}));
    refused(&long_output, 400, INVALID, Some("max_tokens"));
}

#[test]
fn requests_are_refused_by_their_head_before_the_body_is_read() {
    let chain = keyed();
    let check = |method: Method, path, headers: &[(&'static str, &'static str)]| {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let headers = headers.collect::<HeaderMap>();
        let head = HeadParts { method: &method, path, headers: &headers };
        chain.admit_head(&directory(), &head).map(drop).map_err(|error| error.status)
    };
    assert_eq!(check(Method::POST, CHAT, KEY), Ok(()));
    assert_eq!(check(Method::POST, CHAT, &[]), Err(401));
    assert_eq!(check(Method::POST, "/x", KEY), Err(404));
    assert_eq!(check(Method::DELETE, CHAT, KEY), Err(405));
    assert_eq!(check(Method::POST, CHAT, &[KEY[0], ("content-length", "9999999999")]), Err(413));
}

#[test]
fn no_request_is_refused_that_vllm_would_serve() {
    let completion = |body: Json| Sent::post(COMPLETIONS, body);
    for sent in [
        // A prompt that leaves exactly one token of output.
        completion(json!({"model": "tiny", "prompt": vec![7; 31]})),
        // vLLM reduces max_tokens to the rest of the context.
        completion(json!({"model": "tiny", "prompt": vec![7; 31], "max_tokens": 32})),
        completion(json!({"model": "tiny", "prompt": vec![7; 99], "truncate_prompt_tokens": 4})),
        // No known limit, or no exact count.
        completion(json!({"model": "plain", "prompt": vec![7; 9999], "max_tokens": 9999})),
        Sent::post(
            CHAT,
            json!({"model": "tiny", "tools": [], "messages": chat("", 99)["messages"]}),
        ),
        Sent::post(
            CHAT,
            json!({"model": "tiny", "chat_template": "x", "messages": chat("", 99)["messages"]}),
        ),
        Sent::post("/v1/messages", chat("tiny", 99)),
        // Generates nothing: vLLM answers with the count.
        Sent::post("/tokenize", chat("tiny", 99)),
        Sent::post("/v1/embeddings", json!({"model": "tiny", "input": "a b ".repeat(16)})),
        // Without a model name the engine serves its own model.
        Sent::post(CHAT, json!({"messages": []})),
        Sent::post(CHAT, json!({"model": "", "messages": []})),
        Sent::post(CHAT, json!({"model": 7, "messages": []})),
        Sent::post(CHAT, json!({"model": "tiny"})),
        // Malformed messages, tools and templates are estimated.
        Sent::post(CHAT, json!({"model": "tiny", "messages": "x"})),
        Sent::post(CHAT, json!({"model": "tiny", "messages": []})),
        Sent::post(CHAT, json!({"model": "tiny", "messages": [7, null, {"role": 1}]})),
        Sent::post(CHAT, json!({"model": "tiny", "messages": [{"role": "user", "content": 7}]})),
        Sent::post(CHAT, json!({"model": "tiny", "messages": [{"role": "user", "content": [{}]}]})),
        Sent::post(CHAT, json!({"model": "tiny", "messages": [{"role": "user"}], "tools": "x"})),
        Sent::post(CHAT, json!({"model": "tiny", "messages": [], "chat_template": 7})),
        Sent::post(CHAT, json!({"model": "tiny", "messages": [], "chat_template_kwargs": 7})),
        Sent::post("/v1/messages", json!({"model": "tiny", "messages": {}, "system": [1]})),
        Sent::post("/v1/responses", json!({"model": "tiny", "input": 7, "instructions": {}})),
        Sent::post("/v1/embeddings", json!({"model": "tiny", "input": {"a": 1}})),
        Sent::post("/tokenize", json!({"model": "tiny"})),
        completion(json!({"model": "tiny", "prompt": [1, "a", [2]]})),
        completion(json!({"model": "tiny", "prompt": {"a": 1}})),
        completion(json!({"model": "tiny", "prompt": "a", "max_tokens": "9"})),
        completion(json!({"model": "tiny", "prompt": "a", "max_tokens": -1})),
    ] {
        let admitted = sent.admit(&Chain::new(small_blocks()), &directory());
        assert!(admitted.is_ok(), "{}: {admitted:?}", sent.body);
    }
}

#[test]
fn a_form_names_its_model() {
    let form = |name: &str| {
        let body = format!(
            "--X\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{name}\r\n--X--\r\n"
        );
        let kind = &[("content-type", "multipart/form-data; boundary=\"X\"")];
        Sent::post("/v1/audio/transcriptions", body).with(kind)
    };
    let accepted = form("tiny").accepted();
    assert_eq!((accepted.model.as_deref(), accepted.alias_at), (Some("tiny"), None));
    let accepted = form("small").accepted();
    let at = accepted.alias_at.unwrap();
    assert_eq!(
        (accepted.model.as_deref(), at.of(form("small").body.as_bytes())),
        (Some("tiny"), &b"small"[..])
    );
    let error = form("none").admit(&Chain::new(small_blocks()), &directory()).unwrap_err();
    assert_eq!((error.status, error.param), (404, Some("model")));
    let unread = Sent::post("/v1/audio/transcriptions", "RIFF").accepted();
    assert_eq!(unread.model, None);
}

#[test]
fn an_alias_resolves_to_its_model() {
    let sent = Sent::post(CHAT, chat("small", 3));
    let accepted = sent.accepted();
    assert_eq!(accepted.model.as_deref(), Some("tiny"));
    assert_eq!(accepted.alias_at.unwrap().of(sent.body.as_bytes()), b"\"small\"");
    assert_eq!(accepted.prompt.chain, Sent::post(CHAT, chat("tiny", 3)).accepted().prompt.chain);
}

#[test]
fn a_path_without_an_engine_is_unknown_unless_an_operator_lists_it() {
    let vllm = Directory { kinds: Kinds::of(EngineKind::Vllm), ..directory() };
    let listed = Directory { paths: vec!["/v1/moderations".into(), "/x/*".into()], ..vllm.clone() };
    let at = |path: &'static str, directory: &Directory| {
        let admitted = Sent::post(path, "{}").admit(&Chain::new(small_blocks()), directory);
        admitted.map(|accepted| accepted.endpoint).map_err(|error| error.status)
    };
    for path in ["/v1/moderations", "/x/1"] {
        assert_eq!(at(path, &vllm), Err(404), "{path}");
        assert!(at(path, &listed).is_ok(), "{path}");
    }
    assert_eq!(at("/pooling/", &vllm), Ok(Endpoint::Other));
    assert_eq!(at("/infill", &vllm), Err(404));
    assert_eq!(at("/reset_prefix_cache", &listed), Err(404));
}

#[test]
fn the_only_model_of_a_fleet_is_the_default() {
    let mut directory = directory();
    let unnamed = Sent::post(CHAT, json!({"messages": chat("", 3)["messages"]}));
    let model = |directory: &Directory| {
        let accepted = unnamed.admit(&Chain::new(small_blocks()), directory).unwrap();
        accepted.model
    };
    assert_eq!(model(&directory), None, "the fleet has two models");
    directory.models.remove("plain");
    assert_eq!(model(&directory).as_deref(), Some("tiny"));
}

#[test]
fn while_no_model_is_known_clients_get_a_retry_after() {
    let error = Sent::post(CHAT, chat("tiny", 1))
        .admit(&Chain::new(small_blocks()), &Directory::default())
        .unwrap_err();
    assert_eq!((error.status, error.retry_after), (503, Some(2)));
}

#[test]
fn a_key_determines_the_tenant_and_without_keys_all_are_admitted() {
    let sent = Sent::post(CHAT, chat("tiny", 1));
    for (headers, tenant) in [
        (KEY, "red"),
        (&[("authorization", "bearer  sk-blue ")], "blue"),
        (&[("x-api-key", "sk-blue")], "blue"),
        (&[("api-key", "sk-red")], "red"),
    ] {
        let accepted = sent.clone().with(headers).admit(&keyed(), &directory()).unwrap();
        assert_eq!(accepted.tenant.as_str(), tenant);
    }
    assert_eq!(sent.accepted().tenant.as_str(), Tenant::OPEN);
    let shown = format!("{:?}", keyed());
    assert!(shown.contains("blue") && !shown.contains("sk-"), "{shown}");
}

#[test]
fn an_accepted_request_has_its_id_model_and_token_count() {
    let body = chat("tiny", 10);
    let sent = Sent::post(CHAT, &body).with(&[("x-request-id", "mine")]);
    let accepted = sent.accepted();
    assert_eq!(accepted.request_id, "mine");
    assert_eq!(accepted.model.as_deref(), Some("tiny"));
    let prompt = &accepted.prompt;
    assert!(prompt.exact && prompt.features.is_none());
    assert!(prompt.tokens > Tokens(12) && prompt.tokens < Tokens(20), "{}", prompt.tokens);
    assert_eq!(prompt.chain.len() as u64, prompt.tokens.get() / 4);
    assert_eq!(prompt.block_tokens, Tokens(4));
}

#[test]
fn without_a_tokenizer_prompts_are_estimated_and_marked() {
    let prompt = Sent::post(CHAT, chat("plain", 100)).accepted().prompt;
    assert!(!prompt.exact && prompt.features.is_some());
    assert!(prompt.tokens > Tokens(20) && prompt.tokens < Tokens(400), "{}", prompt.tokens);
    assert!(prompt.chain.len() > 20);
    // Tools count too.
    let mut with_tools = chat("plain", 100);
    with_tools["tools"] = json!([{"type": "function", "function": {"name": "f".repeat(400)}}]);
    assert!(Sent::post(CHAT, with_tools).accepted().prompt.tokens > prompt.tokens);
}

#[test]
fn a_request_without_a_prompt_has_no_tokens() {
    for sent in [
        Sent { method: Method::GET, ..Sent::post("/v1/models", "") },
        Sent::post("/v1/audio/transcriptions", "--boundary"),
        Sent::post("/rerank", json!({"query": "x"})),
    ] {
        let accepted = sent.accepted();
        assert_eq!(accepted.prompt.tokens, Tokens::ZERO);
        assert!(accepted.prompt.chain.is_empty() && accepted.prompt.features.is_none());
    }
}

#[test]
fn prompts_share_exactly_the_blocks_of_their_common_prefix() {
    let chain = |model: &str, words: usize, more: Json| {
        let mut body = chat(model, words);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Sent::post(CHAT, body).accepted().prompt.chain
    };
    for model in ["tiny", "plain"] {
        let (short, long) = (chain(model, 12, json!({})), chain(model, 24, json!({})));
        let shared = short.iter().zip(&long).take_while(|(a, b)| a == b).count();
        assert!(shared + 4 >= short.len() && shared > 1, "{model}: {shared} of {}", short.len());
        let salted = chain(model, 12, json!({"cache_salt": "secret"}));
        assert!(short.iter().all(|block| !salted.contains(block)), "{model}");
    }
    let (one, other) = (chain("tiny", 9, json!({})), chain("plain", 9, json!({})));
    assert!(one.iter().all(|block| !other.contains(block)));
}

#[test]
fn completions_are_counted_as_vllm_counts_them() {
    let cases: Vec<Json> = serde_json::from_slice(&testdata("vllm_0.32.0_counts.json")).unwrap();
    assert_eq!(cases.len(), 6);
    let mut directory = directory();
    if let Some(entry) = directory.models.get_mut("tiny") {
        entry.max_model_len = Some(Tokens(4096));
    }
    for case in cases {
        let path = match case["path"].as_str().unwrap() {
            CHAT => CHAT,
            "/tokenize" => "/tokenize",
            _ => COMPLETIONS,
        };
        let sent = Sent::post(path, &case["body"]);
        let prompt = sent.admit(&Chain::new(small_blocks()), &directory).unwrap().prompt;
        assert_eq!(Some(prompt.tokens.get()), case["prompt_tokens"].as_u64(), "{}", case["path"]);
        assert!(prompt.exact);
    }
}

#[test]
fn a_list_of_prompts_is_counted_as_a_sum() {
    for (prompt, tokens) in [(json!([[1, 2, 3], [4]]), 4), (json!(["a", "a"]), 2), (json!([]), 0)] {
        let sent = Sent::post(COMPLETIONS, json!({"model": "tiny", "prompt": prompt}));
        assert_eq!(sent.accepted().prompt.tokens, Tokens(tokens), "{prompt}");
    }
}

#[test]
fn a_template_in_the_request_is_rendered_only_if_trusted() {
    let body = json!({"model": "tiny", "chat_template": "{{ messages[0].content }}",
        "messages": [{"role": "user", "content": "a"}]});
    let sent = Sent::post(CHAT, body);
    assert!(sent.accepted().prompt.features.is_some());
    let trusting = ChainParams { trust_request_chat_template: true, ..small_blocks() };
    let prompt = sent.admit(&Chain::new(trusting), &directory()).unwrap().prompt;
    assert_eq!((prompt.tokens, prompt.features), (Tokens(1), None));
}
