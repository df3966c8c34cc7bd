//! Single-pass scan of a JSON request body: the spans of its top-level members, and the values that
//! tidegate reads. The scan borrows nothing and changes nothing: other members reach the engine
//! byte for byte.

mod fields;
mod foreign_handoff;
mod json_scanner;
mod members;
mod native;

pub use foreign_handoff::ForeignHandoff;

use fields::Key;
pub(crate) use members::{Member, Members};

use crate::Endpoint;
use std::borrow::Cow;
use tidegate_types::Tokens;

/// Byte range of a raw JSON value within a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// The prompt, by type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// `prompt`: one JSON string, quotes included.
    Text(Span),
    /// `prompt`: one list of token ids; their count.
    TokenIds(u32, Span),
    /// `prompt`: a list of prompts.
    List(Span),
    /// `messages`: a list.
    Messages(Span),
    /// `input` of embeddings and responses: a string or a list.
    Input(Span),
    /// No prompt, or one of an unknown type.
    Absent,
}

/// Reason to run a request colocated, on one engine
/// (docs/spec/engine-protocols.md#vllm-request-features).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColocatedReason {
    /// No family can split this endpoint.
    Endpoint,
    /// The client sent `kv_transfer_params`: it controls the hand-off itself.
    ClientHandoff,
    /// `n` or `best_of` above 1: the first answer's read frees the blocks that the others need.
    SeveralAnswers,
    /// `use_beam_search`: as for several answers.
    BeamSearch,
    /// A list of prompts: the answer carries the hand-off of the first only.
    ListPrompt,
    /// `prompt_embeds`: a prompt without tokens.
    PromptEmbeds,
    /// `prompt_logprobs`: the decode engine would recompute the whole prompt.
    PromptLogprobs,
    /// `echo`: as for `prompt_logprobs` once logprobs are requested.
    Echo,
    /// At most one token: the prefill produces it, nothing is left to decode.
    OneToken,
    /// `truncate_prompt_tokens: -1`: some vLLM versions truncate the prompt to what `max_tokens`
    /// leaves, so that the legs would read different prompts.
    TruncatesToFit,
    /// `background` or `previous_response_id`: the state is on one engine.
    StoredByEngine,
    /// The engine will refuse a member that a prefill leg must change: `stream_options` without
    /// `stream`, `min_tokens` above `max_tokens`. The refusal should not cost a prefill.
    WouldBeRefused,
    /// A member has a value whose meaning depends on the engine: a number as a string, a negative
    /// limit.
    OddValue,
}

/// The body is not a JSON object; answered with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JsonBodyError {
    /// Message for the client.
    pub message: String,
}

/// Result of a scan. Its spans are valid for the scanned body only.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Endpoint of the request.
    pub endpoint: Endpoint,
    /// `model`: a JSON string, not empty.
    pub model: Option<Span>,
    /// `stream`, as far as it can be read. The media type of the answer decides.
    pub stream: bool,
    /// `stream_options.include_usage`
    pub include_usage: bool,
    /// `n`: answers requested, at least 1.
    pub n: u32,
    /// Output limit in tokens: `max_completion_tokens`, else `max_tokens` (`max_output_tokens` for
    /// responses). `None`: the engine's default.
    pub max_tokens: Option<Tokens>,
    /// Span and type of the prompt.
    pub prompt: Prompt,
    /// `Some`: the request must run colocated.
    pub colocated: Option<ColocatedReason>,
    /// `tools`
    pub tools: Option<Span>,
    /// `chat_template`
    pub chat_template: Option<Span>,
    /// `chat_template_kwargs`
    pub chat_template_kwargs: Option<Span>,
    /// `cache_salt`
    pub cache_salt: Option<Span>,
    /// `add_generation_prompt`
    pub add_generation_prompt: Option<bool>,
    /// `continue_final_message`
    pub continue_final_message: Option<bool>,
    /// `add_special_tokens`
    pub add_special_tokens: Option<bool>,
    /// The client sent `kv_transfer_params`, so that the answer's must reach it (otherwise
    /// [`crate::redact_answer`] removes them).
    pub client_handoff: bool,
    pub(crate) members: Members,
}

/// Scans a body. Only the JSON syntax is validated: values that cannot be read are left to the
/// engine. Of repeated members the last counts, as in every engine; `null` counts as absent. A byte
/// order mark is skipped.
///
/// ```
/// use tidegate_engine::{Endpoint, Prompt, scan};
///
/// let body = br#"{"model":"m","prompt":"Hello","max_tokens":16,"stream":true}"#;
/// let scan = scan(Endpoint::Completions, body)?;
/// assert_eq!(scan.model_name(body).as_deref(), Some("m"));
/// assert!(scan.stream && scan.colocated.is_none());
/// let Prompt::Text(span) = scan.prompt else { unreachable!() };
/// assert_eq!(span.text(body).as_deref(), Some("Hello"));
/// # Ok::<(), tidegate_engine::JsonBodyError>(())
/// ```
///
/// # Errors
/// [`JsonBodyError`] if the body is not JSON, not an object, or nested deeper than 127.
pub fn scan(endpoint: Endpoint, body: &[u8]) -> Result<Scan, JsonBodyError> {
    let members = Members::read(body)?;
    Ok(fields::read(endpoint, body, members))
}

/// Members whose values are part of [`Scan::shape`].
const SHAPE_VALUES: [&[u8]; 3] = [b"tool_choice", b"response_format", b"structured_outputs"];
/// Bytes of such a value that are hashed.
const SHAPE_VALUE_MAX: usize = 64;

impl Scan {
    /// Hashes the member names and the values that select an engine's code path. Requests that
    /// differ in texts and numbers only have equal shapes.
    pub fn shape(&self, body: &[u8]) -> u64 {
        let mut shape = 0xcbf2_9ce4_8422_2325_u64 ^ self.endpoint as u64;
        let mut add = |bytes: &[u8]| {
            for byte in bytes.iter().chain(b"\0") {
                shape = (shape ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for member in self.members.iter() {
            let (name, value) = (member.name(body), member.value.of(body));
            add(&name);
            let is_literal = matches!(value, b"true" | b"false" | b"null");
            if is_literal || SHAPE_VALUES.contains(&&*name) {
                add(&value[..value.len().min(SHAPE_VALUE_MAX)]);
            }
        }
        // FNV's low bits depend mostly on the last byte, and tables use the low bits.
        shape ^ shape >> 32
    }
}

impl Span {
    /// Returns the raw JSON; empty if `body` is shorter than the scanned one.
    pub fn of<'a>(&self, body: &'a [u8]) -> &'a [u8] {
        body.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// Returns the value of a JSON string, borrowed unless it has escapes. `None` for other types
    /// and for an unpaired surrogate.
    pub fn text<'a>(&self, body: &'a [u8]) -> Option<Cow<'a, str>> {
        members::text(self.of(body))
    }
}

impl Scan {
    /// Number of choices in the answer: `n` times the number of prompts.
    pub fn choices(&self, body: &[u8]) -> u32 {
        let prompts = match self.prompt {
            Prompt::List(span) => {
                serde_json::from_slice::<Vec<serde::de::IgnoredAny>>(span.of(body))
                    .map_or(1, |prompts| u32::try_from(prompts.len().max(1)).unwrap_or(u32::MAX))
            }
            _ => 1,
        };
        self.n.saturating_mul(prompts)
    }

    /// Returns the model name; `None` if the body names none.
    pub fn model_name<'a>(&self, body: &'a [u8]) -> Option<Cow<'a, str>> {
        self.model?.text(body)
    }

    /// Returns the prompt's token ids, if it consists of 32-bit ids.
    pub fn token_ids(&self, body: &[u8]) -> Option<Vec<u32>> {
        match self.prompt {
            Prompt::TokenIds(_, span) => serde_json::from_slice(span.of(body)).ok(),
            _ => None,
        }
    }

    /// Returns the raw value of a top-level member: the last of that name, `None` if absent or
    /// null.
    pub fn value<'a>(&self, body: &'a [u8], key: &str) -> Option<&'a [u8]> {
        let last = self.members.iter().rev().find(|member| member.is(body, key))?;
        Some(last.value.of(body)).filter(|raw| *raw != b"null")
    }
}

impl JsonBodyError {
    pub(crate) fn new(message: impl Into<String>) -> JsonBodyError {
        JsonBodyError { message: message.into() }
    }
}

impl ColocatedReason {
    /// Label value in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            ColocatedReason::Endpoint => "endpoint",
            ColocatedReason::ClientHandoff => "client_handoff",
            ColocatedReason::SeveralAnswers => "several_answers",
            ColocatedReason::BeamSearch => "beam_search",
            ColocatedReason::ListPrompt => "list_prompt",
            ColocatedReason::PromptEmbeds => "prompt_embeds",
            ColocatedReason::PromptLogprobs => "prompt_logprobs",
            ColocatedReason::Echo => "echo",
            ColocatedReason::OneToken => "one_token",
            ColocatedReason::TruncatesToFit => "truncates_to_fit",
            ColocatedReason::StoredByEngine => "kept_by_engine",
            ColocatedReason::WouldBeRefused => "would_be_refused",
            ColocatedReason::OddValue => "odd_value",
        }
    }
}

#[cfg(test)]
mod tests;
