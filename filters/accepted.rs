//! What comes into the chain and what goes out of it. Plain values: no filter lives here.

use crate::Traceparent;
use bytes::Bytes;
use http::{HeaderMap, Method};
use std::fmt;
use std::sync::Arc;
use tidegate_engine::{Endpoint, Kinds, Scan, Span};
use tidegate_scheduler::cost::ByteFeatures;
use tidegate_types::Tokens;

/// A request's head: all that is known before its body is read.
#[derive(Clone, Copy, Debug)]
pub struct HeadParts<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path, without the query string.
    pub path: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// A request with its whole body.
#[derive(Clone, Copy, Debug)]
pub struct RequestParts<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path, without the query string.
    pub path: &'a str,
    /// Its query string; empty if it has none.
    pub query: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body; empty if it has none.
    pub body: &'a Bytes,
}

/// What this room may not make itself: random numbers and the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreshIds {
    /// For a request id.
    pub request: u128,
    /// For a trace id.
    pub trace: u128,
    /// For our span's id.
    pub span: u64,
    /// The time of day for chat templates that print the date: seconds since 1970, UTC.
    pub unix_seconds: u64,
}

/// A request that passed every filter.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// `x-request-id`: the client's if it is sane, else a fresh one. Visible ASCII, 1 to 128 bytes.
    pub request_id: String,
    /// W3C trace context of this hop: the client's trace, our span.
    pub traceparent: Traceparent,
    /// Whose key it came with.
    pub tenant: Tenant,
    /// What its path asks for.
    pub endpoint: Endpoint,
    /// The kinds of engine that have its path.
    pub kinds: Kinds,
    /// What one pass over its body found; `None` where the body is not JSON.
    pub scan: Option<Scan>,
    /// The model it names, as the directory spells it; `None` where a body names none.
    pub model: Option<Arc<str>>,
    /// Where its body names that model by an alias, which engines do not know.
    pub alias_at: Option<Span>,
    /// Its prompt, counted.
    pub prompt: Counted,
}

/// A prompt's size, and what of it may be cached somewhere.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// How many tokens the engine will read; 0 where there is no prompt.
    pub tokens: Tokens,
    /// Counted with the model's own tokenizer and template, on all of the prompt. Otherwise an
    /// estimate: nobody may be refused for it.
    pub exact: bool,
    /// What the estimate was made from, to be fitted to the `usage` the engine reports. `None`
    /// where the model's tokenizer counted, or there was no prompt.
    pub features: Option<ByteFeatures>,
    /// Chained hashes of the prompt's full blocks, first block first: what the prefix index knows
    /// a prompt by.
    pub chain: Vec<u64>,
    /// How many tokens one block of `chain` stands for; 0 if it is empty.
    pub block_tokens: Tokens,
}

/// Whose key a request came with: a configured name, so that its number is bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(pub(crate) Arc<str>);

impl FreshIds {
    /// From random bits: a request id, a trace id, a span id. The date is 1970-01-01 until
    /// [`FreshIds::at`] sets it.
    pub fn from_random(request: u128, trace: u128, span: u64) -> FreshIds {
        FreshIds { request, trace, span, unix_seconds: 0 }
    }

    /// The same at this time of day.
    #[must_use]
    pub fn at(self, unix_seconds: u64) -> FreshIds {
        FreshIds { unix_seconds, ..self }
    }
}

impl RequestParts<'_> {
    /// The part that is known before the body.
    pub fn head(&self) -> HeadParts<'_> {
        HeadParts { method: self.method, path: self.path, headers: self.headers }
    }
}

impl Tenant {
    /// Where no keys are configured, everybody is this one.
    pub const OPEN: &str = "anonymous";

    /// The name, for logs and metrics.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
