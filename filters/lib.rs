//! The filter chain: what a request is, before anyone asks where it goes. Bodies and tokens in,
//! an [`Accepted`] or an [`tidegate_engine::ApiError`] out.
//!
//! - `chain`: the ordered list of filters, and the three calls of the proxy into this room
//! - `accepted`: what comes in and what goes out
//! - `directory`: the models that are served, as a snapshot
//! - `identify`: x-request-id and W3C trace context
//! - `authenticate`: API keys
//! - `handoff`: hand-off members of clients
//! - `limit`: path, method and size
//! - `parse`: the body's one scan, and the model's name
//! - `query`: the model that a query string names
//! - `tokenize`: how many tokens the prompt has, and the hashes of its blocks
//! - `context_limit`: the prompt and `max_tokens` against the model's context length
//! - `model`: a model's own tokenizer and chat template
//!
//! It must never know a backend, open a socket or a file, read a clock or draw a random number.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod accepted;
pub mod authenticate;
pub mod chain;
mod context_limit;
pub mod directory;
pub mod handoff;
pub mod identify;
pub mod limit;
pub mod model;
pub mod parse;
pub mod query;
pub mod tokenize;

pub use accepted::{Accepted, Counted, FreshIds, HeadParts, RequestParts, Tenant};
pub use authenticate::{ApiKey, CREDENTIALS};
pub use chain::{Chain, ChainParams};
pub use directory::{Directory, ModelEntry};
pub use handoff::{HandoffHost, HandoffTrust};
pub use identify::{Traceparent, identify, request_id};
pub use model::{ModelTokenizer, TokenizerError};
pub use query::{model_in_query, with_model};
