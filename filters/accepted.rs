//! Input and output of the filter chain, as plain values.

#[cfg(doc)]
use crate::ServiceClasses;
use crate::{Sampler, Traceparent};
use bytes::Bytes;
use http::{HeaderMap, Method};
use std::fmt;
use std::sync::Arc;
use tidegate_engine::{Endpoint, Kinds, PathEntry, Scan, Span};
use tidegate_scheduler::cost::ByteFeatures;
use tidegate_types::{Targets, Tokens};

/// A request's head, before its body is read.
#[derive(Clone, Copy, Debug)]
pub struct HeadParts<'a> {
    /// Request method.
    pub method: &'a Method,
    /// Path without query string.
    pub path: &'a str,
    /// Request headers.
    pub headers: &'a HeaderMap,
}

/// A head that passed the checks of [`Chain::admit_head`](crate::Chain::admit_head).
#[derive(Clone, Debug)]
pub struct AdmittedHead {
    pub(crate) tenant: Tenant,
    pub(crate) path: PathEntry,
}

/// A request with its whole body.
#[derive(Clone, Copy, Debug)]
pub struct RequestParts<'a> {
    /// Request method.
    pub method: &'a Method,
    /// Path without query string.
    pub path: &'a str,
    /// Query string; may be empty.
    pub query: &'a str,
    /// Request headers.
    pub headers: &'a HeaderMap,
    /// Body; may be empty.
    pub body: &'a Bytes,
}

/// Random numbers and the time, which this crate must not produce itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreshIds {
    /// Random bits of a request id.
    pub request: u128,
    /// Random bits of a trace id.
    pub trace: u128,
    /// Random bits of tidegate's span id.
    pub span: u64,
    /// Time for chat templates that print the date: seconds since 1970, UTC.
    pub unix_seconds: u64,
    /// Decides which traces are sampled.
    pub sampler: Sampler,
}

/// A request that passed all filters.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// `x-request-id`: the client's if it is valid, else a new one. Visible ASCII, 1 to 128 bytes.
    pub request_id: String,
    /// W3C trace context: the client's trace, tidegate's span.
    pub traceparent: Traceparent,
    /// Owner of the API key.
    pub tenant: Tenant,
    /// Meaning of the path.
    pub endpoint: Endpoint,
    /// Engine kinds that have the path.
    pub kinds: Kinds,
    /// Scan of the body; `None` for other formats than JSON.
    pub scan: Option<Scan>,
    /// Model name as in the directory; `None` if the request names no model and the fleet has
    /// several.
    pub model: Option<Arc<str>>,
    /// Span of an alias in the body, which must be replaced by the model name.
    pub alias_at: Option<Span>,
    /// Size of the prompt.
    pub prompt: Counted,
    /// Service class and targets; of no class until [`ServiceClasses::targets`] has set them.
    pub targets: Targets,
}

/// A prompt's size and prefix block hashes.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Prompt tokens; 0 without a prompt.
    pub tokens: Tokens,
    /// Counted with the model's tokenizer and chat template; otherwise an estimate, for which no
    /// request may be refused.
    pub exact: bool,
    /// Features of the estimate, used to fit it to the `usage` that the engine reports. `None` for
    /// an exact count or no prompt.
    pub features: Option<ByteFeatures>,
    /// Chained hashes of the prompt's full blocks, in order: keys of the prefix index.
    pub chain: Vec<u64>,
    /// Tokens per block of `chain`; 0 if it is empty.
    pub block_tokens: Tokens,
}

/// Owner of an API key: a configured name, so that the number of tenants is bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(pub(crate) Arc<str>);

impl FreshIds {
    /// Creates ids from random bits; the time is 1970-01-01 until [`FreshIds::at`] sets it.
    pub fn from_random(request: u128, trace: u128, span: u64) -> FreshIds {
        FreshIds { request, trace, span, ..FreshIds::default() }
    }

    /// Sets the sampler; [`Sampler::OF_CLIENT`] otherwise.
    #[must_use]
    pub fn sampled_by(self, sampler: Sampler) -> FreshIds {
        FreshIds { sampler, ..self }
    }

    /// Sets the time.
    #[must_use]
    pub fn at(self, unix_seconds: u64) -> FreshIds {
        FreshIds { unix_seconds, ..self }
    }
}

impl RequestParts<'_> {
    /// Returns the head.
    pub fn head(&self) -> HeadParts<'_> {
        HeadParts { method: self.method, path: self.path, headers: self.headers }
    }
}

impl Tenant {
    /// The tenant of all requests if no API key is configured.
    pub const OPEN: &str = "anonymous";

    /// Name, for logs and metrics.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
