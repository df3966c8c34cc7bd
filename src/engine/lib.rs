//! What engines speak: requests in, legs out as values; answer bytes in, observations out.
//!
//! - [`endpoint`]: what is asked for at a path, and what tidegate may do with it
//! - [`paths`]: which paths each kind of engine has
//! - [`form`]: which model a multipart form names; [`ids`]: of what engines keep for their clients
//! - [`body`]: one pass over a JSON request body; spans, never copies
//! - [`edits`]: change or append top-level members, every other byte stays
//! - [`kind`]: which server it is, and by which paths it says how it is and what it is
//! - [`family`]: how one request becomes one or two legs, a file an engine family
//! - [`role_switch`]: what SGLang is asked when it shall change its role
//! - [`sse`]: counts tokens in a stream of server-sent events
//! - [`usage`]: the engine's own count of tokens
//! - [`engine_error`]: an engine's own words in place of an answer; [`evidence`]: what a failure says of whom
//! - [`usage_injection`]: asks for exact counts, and keeps them from clients that did not
//! - [`handoff_redaction`]: hides hand-off parameters from clients that did not ask for them
//! - [`openai`]: errors and the model list in OpenAI's form; [`anthropic`]: errors in Anthropic's and Ollama's
//!
//! It must never open a socket, read a clock or rebuild a body that it can edit.
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
pub mod kind;
pub mod openai;
pub mod paths;
pub mod role_switch;
pub mod sse;
pub mod usage;
pub mod usage_injection;

#[cfg(test)]
mod testing;

pub use anthropic::ErrorForm;
pub use body::{ForeignHandoff, JsonBodyError, Prompt, Scan, Span, WholeReason, scan};
pub use edits::Edits;
pub use endpoint::Endpoint;
pub use engine_error::EngineError;
pub use evidence::{ClientState, Evidence, Others, Sign, is_load, judge};
pub use family::{
    ConcurrentLegs, Family, Handoff, LegBody, Legs, Peer, PeerQuery, ProtocolError, RendezvousInfo,
};
pub use form::{is_form, model_in_form};
pub use handoff_redaction::{HandoffRedactor, strip_error, strip_handoff};
pub use kind::EngineKind;
pub use openai::{ApiError, ModelCard, cards_of, list_of, models_of};
pub use paths::{Kinds, Lookup, PathEntry};
pub use sse::{Seen, SseReader};
pub use usage::Usage;
pub use usage_injection::{UsageFilter, UsageRequest};
