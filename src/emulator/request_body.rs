//! Request body, parsed and validated as by vLLM (docs/spec/engine-protocols.md#vllm-prefill-leg;
//! refusals as in the recorded transcripts). The parser shares no code with the proxy's, so that an
//! error in one is not hidden by the other.

mod handoff;
mod members;
mod prompts;

use serde_json::value::RawValue;
use std::collections::BTreeMap;

use crate::config::{EmulatedEngine, EmulatorConfig};
use crate::error_response::ErrorResponse;
use crate::tokens::TokenizedPrompt;
use members::{boolean, given, integer, raw_members, string};

/// Parsed generation request.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    /// `/v1/chat/completions` rather than `/v1/completions`.
    pub chat: bool,
    /// Whether the response is streamed as server-sent events.
    pub stream: bool,
    /// Whether a usage chunk ends the stream.
    pub include_usage: bool,
    /// Whether every chunk has usage.
    pub continuous_usage: bool,
    /// One prompt, or several where `prompt` is a list.
    pub prompts: Vec<TokenizedPrompt>,
    /// Tokens per answer, at least 1.
    pub output: u64,
    /// Finish reason: `length`, or `stop` where the engine chose the length.
    pub finish: &'static str,
    /// Answers per prompt, at least 1.
    pub n: u32,
    /// Hand-off of the request.
    pub handoff: RequestedHandoff,
}

/// Hand-off requested by `kv_transfer_params`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestedHandoff {
    /// No hand-off: this engine runs both legs.
    None,
    /// Prefill, and hold the KV for a reader.
    Produce,
    /// Same, under a transfer name given to both engines in advance.
    Offer(String),
    /// Same, and answer only after the KV was read.
    Meet(String),
    /// Fetch KV that another engine has prefilled.
    Consume(Box<Remote>),
}

/// Owner and location of remote KV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Id of that engine; it changes with every start.
    pub engine_id: String,
    /// Id of its request, with the random suffix.
    pub request_id: String,
    /// Host of its side channel.
    pub host: String,
    /// Port of its side channel.
    pub port: u16,
    /// Whether its prefill may be unfinished or not begun, so that the reader waits.
    pub meets: bool,
}

/// Refused body and the hand-off in it, whose prefill engine is notified.
#[derive(Clone, Debug)]
pub struct RefusedBody {
    /// Error sent to the client.
    pub refusal: ErrorResponse,
    /// Remote KV that will not be fetched.
    pub handoff: RequestedHandoff,
}

/// Top-level members by name; the last duplicate counts, as in Python.
type BodyMembers<'a> = BTreeMap<String, &'a RawValue>;

impl From<ErrorResponse> for RefusedBody {
    fn from(refusal: ErrorResponse) -> RefusedBody {
        RefusedBody { refusal, handoff: RequestedHandoff::None }
    }
}

/// Parses and validates the body of a generation request.
///
/// # Errors
/// Whatever vLLM refuses, with its messages.
pub fn read(
    config: &EmulatorConfig,
    kind: EmulatedEngine,
    chat: bool,
    body: &[u8],
) -> Result<GenerationRequest, RefusedBody> {
    let members = raw_members(body)?;
    let handoff = handoff::of(config, kind, &members)?;
    check(config, kind, chat, &members, &handoff)
        .map_err(|refusal| RefusedBody { refusal, handoff })
}

/// Parses the prompt of a `/tokenize` request.
///
/// # Errors
/// Wrong types, or an unknown model.
pub fn tokenize(config: &EmulatorConfig, body: &[u8]) -> Result<TokenizedPrompt, ErrorResponse> {
    let members = raw_members(body)?;
    known_model(config, &members)?;
    let chat = given(&members, "messages").is_some();
    let mut prompts = prompts::of(chat, &members)?;
    prompts
        .pop()
        .ok_or_else(|| ErrorResponse::bad("The prompt is empty.".to_owned(), Some("prompt")))
}

/// Parses the tokens of a `/detokenize` request.
///
/// # Errors
/// Wrong types.
pub fn detokenize(body: &[u8]) -> Result<TokenizedPrompt, ErrorResponse> {
    let members = raw_members(body)?;
    let tokens = given(&members, "tokens").and_then(|raw| serde_json::from_str(raw.get()).ok());
    let tokens: Vec<u32> = tokens.ok_or_else(|| {
        ErrorResponse::wrong_type("tokens", "list_type", "Input should be a valid list", "None")
    })?;
    Ok(TokenizedPrompt::of_ids(&tokens))
}

fn check(
    config: &EmulatorConfig,
    kind: EmulatedEngine,
    chat: bool,
    members: &BodyMembers<'_>,
    handoff: &RequestedHandoff,
) -> Result<GenerationRequest, ErrorResponse> {
    let stream = boolean(members, "stream")?.unwrap_or(false);
    let options = options(members, stream)?;
    let n = positive(members, "n")?.unwrap_or(1);
    known_model(config, members)?;
    let max_tokens = match integer(members, "max_completion_tokens")? {
        Some(tokens) if chat => Some(tokens),
        _ => integer(members, "max_tokens")?,
    };
    let prompts = prompts::of(chat, members)?;
    let longest = prompts.iter().map(TokenizedPrompt::tokens).max().unwrap_or(0);
    check_context_length(config, longest)?;
    let room = config.max_model_len.saturating_sub(longest).max(1);
    let (output, finish) = output(config, members, max_tokens, room)?;
    let (output, finish) = handoff::one_token(kind, handoff, (output, finish));
    Ok(GenerationRequest {
        chat,
        stream,
        include_usage: options.include_usage,
        continuous_usage: options.include_usage && options.continuous_usage_stats,
        prompts,
        output,
        finish,
        n: u32::try_from(n).unwrap_or(u32::MAX).min(ANSWERS_MAX),
        handoff: handoff.clone(),
    })
}

/// vLLM's own limit (`VLLM_MAX_N_SEQUENCES`) is higher; tests need no more.
const ANSWERS_MAX: u32 = 128;

#[derive(Default, serde::Deserialize)]
struct UsageOptions {
    #[serde(default)]
    include_usage: bool,
    #[serde(default)]
    continuous_usage_stats: bool,
}

fn options(members: &BodyMembers<'_>, stream: bool) -> Result<UsageOptions, ErrorResponse> {
    let Some(raw) = given(members, "stream_options") else { return Ok(UsageOptions::default()) };
    if !stream {
        let message =
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)";
        return Err(ErrorResponse::bad(message.to_owned(), Some("stream_options")));
    }
    serde_json::from_str(raw.get()).map_err(|_| {
        let message = "Input should be a valid dictionary";
        ErrorResponse::wrong_type("stream_options", "model_attributes_type", message, "...")
    })
}

fn known_model(config: &EmulatorConfig, members: &BodyMembers<'_>) -> Result<(), ErrorResponse> {
    match string(members, "model")? {
        Some(model) if model != config.model => {
            Err(ErrorResponse::unknown_model(&model, &config.model))
        }
        _ => Ok(()),
    }
}

fn check_context_length(config: &EmulatorConfig, prompt: u64) -> Result<(), ErrorResponse> {
    let limit = config.max_model_len;
    if prompt < limit {
        return Ok(());
    }
    let message = format!(
        "This model's maximum context length is {limit} tokens. However, your prompt contains at \
         least {prompt} input tokens, which exceeds this limit even without any output tokens. \
         Please reduce the length of the input prompt. (parameter=input_tokens, value={prompt})"
    );
    Err(ErrorResponse::bad(message, Some("input_tokens")))
}

/// Returns the number of output tokens and the finish reason.
fn output(
    config: &EmulatorConfig,
    members: &BodyMembers<'_>,
    max_tokens: Option<i64>,
    room: u64,
) -> Result<(u64, &'static str), ErrorResponse> {
    let min = integer(members, "min_tokens")?.unwrap_or(0);
    if let Some(max) = max_tokens.filter(|max| *max < 1) {
        let message = format!(
            "max_tokens must be at least 1, got {max}. (parameter=max_tokens, value={max})"
        );
        return Err(ErrorResponse::bad(message, Some("max_tokens")));
    }
    if min < 0 {
        let message = format!("min_tokens must be greater than or equal to 0, got {min}.");
        return Err(ErrorResponse::bad(message, None));
    }
    // vLLM silently cuts output that exceeds the context.
    let most = max_tokens.map_or(room, |max| max.unsigned_abs().min(room));
    if min.unsigned_abs() > most {
        let message =
            format!("min_tokens must be less than or equal to max_tokens={most}, got {min}.");
        return Err(ErrorResponse::bad(message, None));
    }
    let ignore_eos = boolean(members, "ignore_eos")?.unwrap_or(false);
    Ok(match max_tokens {
        Some(_) => (most, "length"),
        // With `ignore_eos` alone an answer would fill the context; this bounds it.
        None if ignore_eos => (config.default_output.get().clamp(1, room), "length"),
        None => (config.default_output.get().max(min.unsigned_abs()).clamp(1, room), "stop"),
    })
}

fn positive(members: &BodyMembers<'_>, member: &'static str) -> Result<Option<u64>, ErrorResponse> {
    match integer(members, member)? {
        Some(value) if value < 1 => {
            let message = format!("{member} must be at least 1, got {value}.");
            Err(ErrorResponse::bad(message, Some(member)))
        }
        value => Ok(value.map(i64::unsigned_abs)),
    }
}

#[cfg(test)]
mod tests;
