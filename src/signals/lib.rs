//! What engines tell beside their answers, read into plain values.
//!
//! - [`kv`]: KV cache events, and the mirror of an engine's prefix cache that follows from them
//! - [`prometheus`], [`engine`]: a /metrics page, and what it says of an engine
//! - [`orca`], [`loads`]: ORCA's response header, SGLang's /v1/loads
//! - [`facts`], [`compatibility`]: what an engine says it is, and whether that fits what was said of it
//! - [`engine_alerts`]: what of all that an operator should look at
//! - [`gpu`]: a GPU's readings, and whether it may go on working
//!
//! Pure: bytes and readings in, values out. It opens no socket, reads no clock and must never decide
//! where a request goes: signals calibrate and warn, and say who is not what it should be.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod compatibility;
pub mod engine;
pub mod engine_alerts;
pub mod facts;
pub mod gpu;
pub mod kv;
pub mod loads;
pub mod orca;
pub mod prometheus;
