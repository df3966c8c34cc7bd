//! Protocols of LLM engines, as pure functions: a request becomes legs, answer bytes become
//! observations.
//!
//! - [`endpoint`], [`paths`]: the meaning of a path, and the paths of each engine kind
//! - [`form`]: the model named by a multipart form; [`ids`]: ids of objects stored by engines
//! - [`body`]: single-pass scan of a JSON request body into spans
//! - [`edits`]: replaces or appends top-level members
//! - [`kind`]: engine kinds, with their health and fact paths
//! - [`family`]: the legs of a request, one file per KV transfer protocol
//! - [`role_switch`], [`pd_role`]: the calls that change an engine's role, SGLang's and vLLM's
//! - [`trial`]: the request of a trial hand-off
//! - [`sse`]: counts tokens in a stream
//! - [`usage`]: token counts reported by an engine
//! - [`engine_error`]: an engine's error message; [`evidence`]: attribution of a failure
//! - [`usage_injection`]: requests usage in every chunk, and removes it for other clients
//! - [`handoff_redaction`]: removes hand-off members from answers
//! - [`whole_answer`]: converts an answer in one piece into the requested stream
//! - [`openai`]: errors and model lists in OpenAI's format; [`anthropic`]: in Anthropic's and
//!   Ollama's
//!
//! The crate opens no socket, reads no clock, and edits bodies instead of rebuilding them.
#![warn(missing_docs)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod anthropic;
pub mod body;
pub mod edits;
pub mod endpoint;
pub mod engine_error;
mod error_event;
pub mod evidence;
pub mod family;
pub mod form;
mod handoff_members;
pub mod handoff_redaction;
pub mod ids;
pub mod json_string;
pub mod kind;
pub mod openai;
pub mod paths;
pub mod pd_role;
pub mod role_switch;
pub mod sse;
pub mod trial;
pub mod usage;
pub mod usage_injection;
pub mod whole_answer;

#[cfg(test)]
mod testing;

pub use anthropic::ErrorForm;
pub use body::{ColocatedReason, ForeignHandoff, JsonBodyError, Prompt, Scan, Span, scan};
pub use edits::Edits;
pub use endpoint::Endpoint;
pub use engine_error::EngineError;
pub use evidence::{ClientState, Evidence, FailureKind, OtherAttempts, attribute, is_load};
pub use family::{
    ConcurrentLegs, Family, Handoff, LegBody, Legs, Peer, PeerQuery, ProtocolError, RendezvousInfo,
};
pub use form::{is_form, model_in_form};
pub use handoff_redaction::{HandoffRedactor, redact_answer, redact_error};
pub use kind::EngineKind;
pub use openai::{ApiError, ModelCard, cards_of, list_of, models_of};
pub use paths::{Kinds, PathEntry, PathLookup};
pub use sse::{Seen, SseReader};
pub use usage::Usage;
pub use usage_injection::{UsageFilter, UsageRequest};
pub use whole_answer::stream_of_answer;
