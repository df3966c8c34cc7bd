//! The configuration: what an operator may say, its defaults, and every mistake at once.
//!
//! - [`schema`]: the sections and their keys, one struct a section
//! - [`defaults`]: every default with its reason
//! - [`parse`]: text in, settings or all problems out
//! - [`validate`]: what types cannot say
//! - [`convert`]: settings into the plain parameters that other rooms own
//!
//! It reads no file, no environment and no clock: the shell does, and hands in text.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod convert;
pub mod defaults;
pub mod parse;
pub mod schema;
mod validate;

pub use parse::Problem;
pub use schema::{
    AccessLog, AdminSettings, AuthSettings, BackendSettings, Connector, EngineName, KeySettings,
    KvRole, LogFormat, LogSettings, ModelSettings, PlacementSettings, PlannerSettings,
    PrefixSettings, ProbeSettings,
    QueueSettings, RetrySettings, ServerSettings, Settings, SloSettings, TlsSettings,
    UpstreamSettings,
};
