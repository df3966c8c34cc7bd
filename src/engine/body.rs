//! One pass over a JSON request body: which top-level members it has, where their values lie, and
//! what tidegate must know of them. It must never own, rebuild or normalise any of the body: what
//! it does not read reaches the engine as the client wrote it.

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

/// A stretch of a body: the raw JSON of one value, from byte `start` up to byte `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// What the model is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// `prompt` as one JSON string, quotes included.
    Text(Span),
    /// `prompt` as one list of that many token ids.
    TokenIds(u32, Span),
    /// `prompt` as a list of prompts.
    List(Span),
    /// `messages`, a list.
    Messages(Span),
    /// `input` of embeddings and responses: a string or a list.
    Input(Span),
    /// None that tidegate can read.
    Absent,
}

/// Why a request must run whole on one engine
/// (docs/spec/engine-protocols.md#vllm-request-features).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WholeReason {
    /// There is no recipe to split this endpoint.
    Endpoint,
    /// The client sends `kv_transfer_params` of its own: its hand-off, not ours.
    ClientHandoff,
    /// `n` or `best_of` above 1: the first answer's read frees the blocks the others need.
    SeveralAnswers,
    /// `use_beam_search`: as above.
    BeamSearch,
    /// A list of prompts: the answer carries the hand-off of the first only.
    ListPrompt,
    /// `prompt_embeds`: a prompt without tokens.
    PromptEmbeds,
    /// `prompt_logprobs`: decode would recompute the whole prompt.
    PromptLogprobs,
    /// `echo`: as above once logprobs are asked for.
    Echo,
    /// At most one token is wanted: prefill makes it, there is nothing to decode.
    OneToken,
    /// `truncate_prompt_tokens: -1`: some vLLM versions cut the prompt to what `max_tokens` leaves,
    /// so that the two legs would read different prompts.
    TruncatesToFit,
    /// `background`, or `previous_response_id`: one engine keeps the answers.
    KeptByEngine,
    /// The engine will refuse it, for a member that a prefill leg must change: `stream_options`
    /// without `stream`, `min_tokens` above `max_tokens`. Better at once than after a prefill.
    WouldBeRefused,
    /// A member has a value that only the engine can judge: a number as a string, a negative limit.
    OddValue,
}

/// The body is no JSON object: a 400 with this message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JsonBodyError {
    /// For the client.
    pub message: String,
}

/// What one pass found. Spans point into the body that was scanned, and only there.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Whose body it is.
    pub endpoint: Endpoint,
    /// `model`, a JSON string that is not empty.
    pub model: Option<Span>,
    /// The client wants a stream, as far as it can be read: the answer's media type decides.
    pub stream: bool,
    /// `stream_options.include_usage`
    pub include_usage: bool,
    /// Answers wanted; at least 1.
    pub n: u32,
    /// The most tokens to generate: `max_completion_tokens`, else `max_tokens`
    /// (`max_output_tokens` for responses). `None`: the engine's default.
    pub max_tokens: Option<Tokens>,
    /// What the model is to read.
    pub prompt: Prompt,
    /// `Some`: must run whole on one engine.
    pub whole: Option<WholeReason>,
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
    /// The client sent `kv_transfer_params` of its own, so the answer's must reach it
    /// (otherwise [`crate::strip_handoff`]).
    pub client_handoff: bool,
    pub(crate) members: Members,
}

/// Reads a body once. Validates that it is JSON and leaves every other judgement to the engine: a
/// value that cannot be read is estimated. Of a member that is given twice the last counts, as in
/// every engine; `null` counts as absent. A byte order mark before the JSON is skipped.
///
/// # Errors
/// Not JSON, nested deeper than 127, or not an object.
pub fn scan(endpoint: Endpoint, body: &[u8]) -> Result<Scan, JsonBodyError> {
    let members = Members::read(body)?;
    Ok(fields::read(endpoint, body, members))
}

/// Members of which the value, too, says what an engine makes of a request.
const TELLING: [&[u8]; 3] = [b"tool_choice", b"response_format", b"structured_outputs"];
/// How much of such a value is looked at.
const TELLING_MAX: usize = 64;

impl Scan {
    /// A number for the shape of a request: the names of its members, and the values that engines
    /// branch by. Two requests that differ in their texts and numbers alone have the same.
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
            let is_word = matches!(value, b"true" | b"false" | b"null");
            if is_word || TELLING.contains(&&*name) {
                add(&value[..value.len().min(TELLING_MAX)]);
            }
        }
        // FNV leaves the low bits to the last byte, and tables are indexed by them.
        shape ^ shape >> 32
    }
}

impl Span {
    /// The raw JSON, quotes and all. Empty if `body` is not the one that was scanned.
    pub fn of<'a>(&self, body: &'a [u8]) -> &'a [u8] {
        body.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// The value of a JSON string; borrowed unless it has escapes. `None` if it is no string, or
    /// has half a surrogate pair.
    pub fn text<'a>(&self, body: &'a [u8]) -> Option<Cow<'a, str>> {
        members::text(self.of(body))
    }
}

impl Scan {
    /// How many choices the answer has: `n` for each of the prompts in `body`.
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

    /// The model's name.
    pub fn model_name<'a>(&self, body: &'a [u8]) -> Option<Cow<'a, str>> {
        self.model?.text(body)
    }

    /// The prompt's token ids, if the client sent ids and each fits 32 bits.
    pub fn token_ids(&self, body: &[u8]) -> Option<Vec<u32>> {
        match self.prompt {
            Prompt::TokenIds(_, span) => serde_json::from_slice(span.of(body)).ok(),
            _ => None,
        }
    }

    /// Any top-level member's raw value: the last of that name, `None` if absent or null.
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

impl WholeReason {
    /// A word for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            WholeReason::Endpoint => "endpoint",
            WholeReason::ClientHandoff => "client_handoff",
            WholeReason::SeveralAnswers => "several_answers",
            WholeReason::BeamSearch => "beam_search",
            WholeReason::ListPrompt => "list_prompt",
            WholeReason::PromptEmbeds => "prompt_embeds",
            WholeReason::PromptLogprobs => "prompt_logprobs",
            WholeReason::Echo => "echo",
            WholeReason::OneToken => "one_token",
            WholeReason::TruncatesToFit => "truncates_to_fit",
            WholeReason::KeptByEngine => "kept_by_engine",
            WholeReason::WouldBeRefused => "would_be_refused",
            WholeReason::OddValue => "odd_value",
        }
    }
}

#[cfg(test)]
mod tests;
