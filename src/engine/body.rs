//! One pass over a JSON request body.

use crate::Endpoint;
use std::borrow::Cow;
use tidegate_terms::Tokens;

/// A stretch of a body's bytes: the raw JSON of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub fn of<'a>(&self, body: &'a [u8]) -> &'a [u8] {
        body.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
    pub fn text<'a>(&self, body: &'a [u8]) -> Option<Cow<'a, str>> {
        let _ = body;
        None
    }
}

/// What the model is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(Span),
    TokenIds(u32, Span),
    List(Span),
    Messages(Span),
    Input(Span),
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WholeReason {
    Endpoint,
    ClientHandoff,
    SeveralAnswers,
    BeamSearch,
    ListPrompt,
    PromptEmbeds,
    PromptLogprobs,
    Echo,
    OneToken,
    TruncatesToFit,
    WouldBeRefused,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BodyError {
    pub message: String,
    pub param: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub struct Scan {
    pub endpoint: Endpoint,
    pub model: Option<Span>,
    pub stream: bool,
    pub include_usage: bool,
    pub n: u32,
    pub max_tokens: Option<Tokens>,
    pub prompt: Prompt,
    pub whole: Option<WholeReason>,
    pub tools: Option<Span>,
    pub chat_template: Option<Span>,
    pub chat_template_kwargs: Option<Span>,
    pub cache_salt: Option<Span>,
    pub add_generation_prompt: Option<bool>,
    pub continue_final_message: Option<bool>,
    pub add_special_tokens: Option<bool>,
    pub priority: Option<i64>,
    /// The client sent `kv_transfer_params` of its own: the answer's must reach it.
    pub client_handoff: bool,
}

impl Scan {
    pub fn model_name<'a>(&self, body: &'a [u8]) -> Option<Cow<'a, str>> {
        self.model?.text(body)
    }
    pub fn token_ids(&self, body: &[u8]) -> Option<Vec<u32>> {
        let _ = body;
        None
    }
    /// Any top-level member's raw value: the last of that name; `None` if absent or null.
    pub fn value<'a>(&self, body: &'a [u8], key: &str) -> Option<&'a [u8]> {
        let _ = (body, key);
        None
    }
}

pub fn scan(endpoint: Endpoint, body: &[u8]) -> Result<Scan, BodyError> {
    let _ = (endpoint, body);
    Err(BodyError { message: "not yet".into(), param: None })
}
