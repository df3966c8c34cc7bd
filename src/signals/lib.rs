//! Signals from engines and GPUs other than answers, parsed into plain values.
//!
//! - [`kv`]: KV cache events and the mirror of an engine's prefix cache
//! - [`prometheus`], [`engine`]: a /metrics page, and the engine's values in it
//! - [`orca`], [`loads`]: ORCA's response header, SGLang's /v1/loads
//! - [`facts`], [`compatibility`]: reported facts of an engine, and their comparison with the
//!   settings
//! - [`engine_alerts`]: alerts for operators
//! - [`gpu`]: GPU readings and health
//!
//! The crate is pure: no sockets, no clock. Signals calibrate cost models, raise alerts and exclude
//! misfit or broken backends; they do not place requests.
#![warn(missing_docs)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod compatibility;
pub mod engine;
pub mod engine_alerts;
pub mod facts;
pub mod gpu;
pub mod identity;
pub mod kv;
pub mod loads;
pub mod orca;
pub mod prometheus;
