//! A request's body, read and validated as vLLM does (engine_protocols.md §1.3, §1.6).
//!
//! Tokens are not a model's: a text counts one for every four bytes, token ids count themselves.

use serde::Deserialize;
use serde_json::Value;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::config::EmulatorConfig;

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// `/v1/chat/completions` rather than `/v1/completions`?
    pub chat: bool,
    /// As server-sent events?
    pub stream: bool,
    /// With a usage chunk at the end?
    pub include_usage: bool,
    /// Prompt tokens.
    pub prompt: u64,
    /// Tokens to emit.
    pub output: u64,
    /// How many answers.
    pub n: u32,
    /// Decides the text, so that two engines answer alike.
    pub seed: u64,
    /// The hand-off, if there is one.
    pub handoff: Option<HandoffParams>,
}

/// `kv_transfer_params` as far as an engine reads it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HandoffParams {
    /// Prefill for somebody else.
    pub do_remote_decode: bool,
    /// Somebody else has prefilled.
    pub do_remote_prefill: bool,
    /// Which engine.
    pub remote_engine_id: Option<String>,
    /// Which of its requests.
    pub remote_request_id: Option<String>,
    /// Where it is.
    pub remote_host: Option<String>,
    /// At which port.
    pub remote_port: Option<u16>,
}

/// Why a body is refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// 400 or 404.
    pub status: u16,
    /// vLLM's type of error.
    pub kind: &'static str,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub param: Option<&'static str>,
    /// The hand-off in it: its prefill engine is told to give up.
    pub handoff: Option<HandoffParams>,
}

#[derive(Deserialize)]
struct Body {
    model: Option<String>,
    messages: Option<Vec<Message>>,
    prompt: Option<Value>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    min_tokens: Option<i64>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    kv_transfer_params: Option<HandoffParams>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Value,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Without `max_tokens` an engine goes on until it has said enough.
const DEFAULT_OUTPUT: u64 = 128;

/// Read and validate a body.
pub fn read(config: &EmulatorConfig, chat: bool, body: &[u8]) -> Result<Ask, Box<Refusal>> {
    let parsed: Body = serde_json::from_slice(body)
        .map_err(|error| bad(format!("1 validation error: {error}"), None))?;
    let handoff = parsed.kv_transfer_params.clone();
    check(config, chat, &parsed).map_err(|refusal| Box::new(Refusal { handoff, ..*refusal }))
}

fn check(config: &EmulatorConfig, chat: bool, body: &Body) -> Result<Ask, Box<Refusal>> {
    if let Some(model) = body.model.as_ref().filter(|model| **model != config.model) {
        return Err(Box::new(Refusal {
            status: 404,
            kind: "NotFoundError",
            message: format!("The model `{model}` does not exist."),
            param: Some("model"),
            handoff: None,
        }));
    }
    let (prompt, seed) = prompt_of(chat, body)?;
    let stream = body.stream.unwrap_or(false);
    if body.stream_options.is_some() && !stream {
        let message = "Stream options can only be defined when `stream=True`.";
        return Err(bad(message.to_owned(), Some("stream_options")));
    }
    let said = body.max_completion_tokens.filter(|_| chat).or(body.max_tokens);
    if said.is_some_and(|tokens| tokens < 1) {
        return Err(bad("max_tokens must be at least 1".to_owned(), Some("max_tokens")));
    }
    let output = said.map_or(DEFAULT_OUTPUT, i64::unsigned_abs);
    if body.min_tokens.is_some_and(|min| min > 0 && min.unsigned_abs() > output) {
        let message = format!("min_tokens must be less than or equal to max_tokens={output}.");
        return Err(bad(message, Some("min_tokens")));
    }
    if prompt >= config.max_model_len {
        let limit = config.max_model_len;
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, your prompt contains at least {prompt} input tokens."
        );
        return Err(bad(message, Some("input_tokens")));
    }
    Ok(Ask {
        chat,
        stream,
        include_usage: body.stream_options.as_ref().is_some_and(|options| options.include_usage),
        prompt,
        output: output.min(config.max_model_len - prompt),
        n: body.n.unwrap_or(1).max(1),
        seed,
        handoff: body.kv_transfer_params.clone(),
    })
}

/// Prompt tokens, and a number that stands for the text.
fn prompt_of(chat: bool, body: &Body) -> Result<(u64, u64), Box<Refusal>> {
    let mut hasher = DefaultHasher::new();
    let tokens = match (chat, &body.messages, &body.prompt) {
        (true, Some(messages), _) => {
            let bytes: usize = messages.iter().map(|m| text(&m.content, &mut hasher)).sum();
            (bytes as u64).div_ceil(4)
        }
        (true, None, _) => return Err(bad("messages is missing".to_owned(), Some("messages"))),
        (false, _, Some(Value::Array(ids))) if ids.iter().all(Value::is_u64) => {
            ids.hash(&mut hasher);
            ids.len() as u64
        }
        (false, _, Some(prompt)) => (text(prompt, &mut hasher) as u64).div_ceil(4),
        (false, _, None) => return Err(bad("prompt is missing".to_owned(), Some("prompt"))),
    };
    Ok((tokens.max(1), hasher.finish()))
}

/// Bytes of all strings in a content: a text, or a list of parts.
fn text(content: &Value, hasher: &mut DefaultHasher) -> usize {
    match content {
        Value::String(text) => {
            text.hash(hasher);
            text.len()
        }
        Value::Array(parts) => parts.iter().map(|part| text(part, hasher)).sum(),
        Value::Object(part) => part.get("text").map_or(0, |part| text(part, hasher)),
        _ => 0,
    }
}

/// How many tokens `/tokenize` finds in a body.
pub fn count(body: &[u8]) -> Result<u64, Box<Refusal>> {
    let parsed: Body = serde_json::from_slice(body).map_err(|e| bad(e.to_string(), None))?;
    prompt_of(parsed.messages.is_some(), &parsed).map(|(tokens, _)| tokens)
}

fn bad(message: String, param: Option<&'static str>) -> Box<Refusal> {
    Box::new(Refusal { status: 400, kind: "BadRequestError", message, param, handoff: None })
}
