//! The filter chain: admission of a request before placement. Returns an [`Accepted`] request or
//! the [`tidegate_engine::ApiError`] for the client.
//!
//! - `chain`: the filters in order, and the three calls of the proxy
//! - `accepted`: input and output values
//! - `directory`: snapshot of served models and paths
//! - `identify`: x-request-id and W3C trace context
//! - `sampler`: which traces are sampled
//! - `authenticate`: API keys
//! - `handoff`: hand-off members of clients
//! - `limit`: path, method and size
//! - `parse`: scan of the body, and the model's name
//! - `query`: the model named by a query string
//! - `calibration`: estimates corrected by the engine's own counts
//! - `tokenize`: prompt tokens and prefix block hashes
//! - `context_limit`: the prompt and `max_tokens` against the model's context length
//! - `model`: a model's tokenizer and chat template (cargo feature `tokenizer`)
//! - `service_class`: the class and the targets of an accepted request
//!
//! The crate is pure: no backends, sockets, files, clock or random numbers.
#![warn(missing_docs)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod accepted;
pub mod authenticate;
pub mod calibration;
pub mod chain;
mod context_limit;
pub mod directory;
mod encoded;
pub mod handoff;
pub mod identify;
pub mod limit;
#[cfg(feature = "tokenizer")]
pub mod model;
pub mod parse;
pub mod query;
pub mod sampler;
pub mod service_class;
pub mod tokenize;
#[cfg(not(feature = "tokenizer"))]
mod without_tokenizer;

pub use accepted::{Accepted, AdmittedHead, Counted, FreshIds, HeadParts, RequestParts, Tenant};
pub use authenticate::{ApiKey, CREDENTIALS};
pub use calibration::{Calibration, Calibrations, PromptEstimator, tokenize_body};
pub use chain::{Chain, ChainParams};
pub use directory::{Directory, ModelEntry};
pub use encoded::TokenizerError;
pub use handoff::{HandoffHost, HandoffTrust, remove_handoff_headers};
pub use identify::{Traceparent, identify, request_id};
#[cfg(feature = "tokenizer")]
pub use model::ModelTokenizer;
pub use query::{model_in_query, with_model};
pub use sampler::Sampler;
pub use service_class::{ServiceClass, ServiceClasses};
#[cfg(not(feature = "tokenizer"))]
pub use without_tokenizer::ModelTokenizer;
