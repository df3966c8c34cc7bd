//! An engine emulator: the engine model of `tidegate-sim` served over HTTP in real time, with vLLM's API
//! and the hand-off of one of its connectors, SGLang's bootstrap rooms or TensorRT-LLM's two legs.
//!
//! - [`config`]: settings of the emulator
//! - [`server`]: listeners and connections; engines that can be killed and revived
//! - [`routes`]: request paths and their responses
//! - [`request_body`]: request parsing and validation as in vLLM; [`error_response`]: its errors
//! - [`tokens`]: token definition; [`answer_text`]: the text of answers
//! - [`generate`]: lifecycle of one request: hand-off, sequences, response
//! - [`sglang`], [`trtllm`], [`mooncake`], [`pd_role`]: protocol specifics; [`auth`]: TensorRT-LLM's signatures
//! - [`rendezvous`]: a prefill leg paired with its decode leg; [`shared_kv_store`]: KV shared by all engines
//! - [`engine`]: state shared by one engine's connections and tasks
//! - [`scheduler`]: the task that steps one engine against absolute deadlines
//! - [`token_feed`]: tokens from the scheduler to a response, without a channel
//! - [`lease`]: KV held for readers; [`kv_transfer`]: the KV protocol between engines; [`fetch`]: the decode
//!   engine's part of a hand-off
//! - [`response_body`] and [`response_format`]: wire format, streamed and whole
//! - [`block_cache`]: the optional prefix cache
//! - [`stats`]: counters for tests; [`metrics`]: the same under vLLM's names
//!
//! The emulator is at least as strict as a real engine: an invalid hand-off fails or is recomputed, and
//! counted, so that a test can distinguish a transfer from a silent recompute.
//!
//! ```
//! use tidegate_emulator::{EmulatorConfig, start};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let engines = start(EmulatorConfig { count: 2, ..EmulatorConfig::default() }).await.unwrap();
//! assert_eq!(engines.addresses().len(), 2);
//! assert_eq!(engines.stats(0).finished, 0);
//! engines.stop().await;
//! # });
//! ```
#![warn(missing_docs)]
#![allow(clippy::disallowed_methods, reason = "answers contain their creation time")]

pub mod config;
pub mod server;
pub mod stats;
pub mod tokens;

mod answer_text;
mod auth;
mod block_cache;
mod engine;
mod error_response;
mod fetch;
mod generate;
mod kv_transfer;
mod lease;
mod metrics;
mod mooncake;
mod pd_role;
mod rendezvous;
mod request_body;
mod response_body;
mod response_format;
mod routes;
mod scheduler;
mod sglang;
mod shared_kv_store;
mod token_feed;
mod trtllm;

#[cfg(test)]
mod tests;

pub use config::{
    EmulatedEngine, EmulatorConfig, LoadFailurePolicy, PdRole, SglangMode, VllmConnector,
    VllmKvRole,
};
pub use server::{RunningEmulator, start};
pub use stats::Stats;
