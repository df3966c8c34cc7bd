//! An engine emulator: the engine model of `tidegate-sim` served over HTTP in real time, with
//! vLLM's API and the hand-off of one of its connectors, SGLang's rooms or TensorRT-LLM's two legs.
//!
//! - [`config`]: settings of the emulator
//! - [`server`]: listeners and connections; engines that can be killed and revived
//! - [`routes`]: request paths and their responses
//! - [`body`]: request parsing and validation as in vLLM; [`refusal`]: its errors
//! - [`tokens`]: token definition; [`text`]: the text of answers
//! - [`generate`]: lifecycle of one request: hand-off, sequences, response
//! - [`sglang`], [`trtllm`], [`mooncake`]: protocol specifics; [`auth`]: TensorRT-LLM's signatures
//! - [`room`]: a prefill paired with its decode; [`store`]: KV shared by all engines
//! - [`engine`]: state shared by one engine's connections and tasks
//! - [`scheduler`]: the task that steps one engine against absolute deadlines
//! - [`feed`]: tokens from the scheduler to a stream, without a channel
//! - [`lease`]: KV held for readers; [`side`]: the KV protocol between engines; [`fetch`]: the
//!   decode engine's side of a hand-off
//! - [`stream`] and [`shape`]: wire format, streamed and whole
//! - [`prefix`]: the optional prefix cache
//! - [`stats`]: counters for tests; [`metrics`]: the same under vLLM's names
//!
//! The emulator is at least as strict as a real engine: an invalid hand-off fails or is
//! recomputed, and counted, so that a test can tell a transfer from a silent recompute.
#![allow(clippy::disallowed_methods, reason = "answers tell when they were made")]

pub mod config;
pub mod server;
pub mod stats;
pub mod tokens;

mod auth;
mod body;
mod engine;
mod feed;
mod fetch;
mod generate;
mod lease;
mod metrics;
mod mooncake;
mod prefix;
mod refusal;
mod room;
mod routes;
mod scheduler;
mod sglang;
mod shape;
mod side;
mod store;
mod stream;
mod text;
mod trtllm;

#[cfg(test)]
mod tests;

pub use config::{
    DisaggregationMode, EmulatorConfig, EngineKind, KvRole, LoadFailurePolicy, VllmConnector,
};
pub use server::{Running, start};
pub use stats::Stats;
