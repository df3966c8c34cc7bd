//! The configuration: its schema, its defaults, and validation that reports all errors at once.
//!
//! - [`schema`]: the sections and their keys, one struct a section
//! - [`defaults`]: every default with its reason
//! - `profiles`: built-in engine profiles by name
//! - [`parse`]: text in, settings or all problems out; on a `tree` with line numbers
//! - `problem`: one error, formatted on one line
//! - `validate`: constraints that types do not express
//! - [`reconcile`]: desired backends of several sources in, changes out
//! - [`reload`]: another version of the settings in, what changes and what needs a restart out
//! - [`convert`]: settings into the plain parameters that other rooms own
//!
//! It reads no file, no environment and no clock: the shell does, and hands in text.
#![warn(missing_docs)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod convert;
pub mod defaults;
pub mod draft;
pub mod parse;
mod problem;
mod profiles;
pub mod reconcile;
pub mod reload;
pub mod schema;
mod tree;
mod validate;

#[cfg(test)]
mod any_text_tests;
#[cfg(test)]
mod examples_tests;
#[cfg(test)]
mod tests;

pub use problem::Problem;
pub use schema::{
    AccessLog, AdminSettings, AuthSettings, BackendSettings, ClientAuth, Connector, CorsSettings,
    EngineName, HalfClose, KeySettings, KubernetesSettings, KvRole, LogFormat, LogSettings,
    ModelSettings, PlacementSettings, PlannerSettings, PodSettings, PrefixSettings, Preset,
    ProbeSettings, QueueSettings, RetrySettings, RoleLabelSettings, ScheduleStyle, Secret,
    ServerSettings, Settings, SidecarSettings, SignalSettings, SloSettings, TlsSettings,
    UpstreamSettings,
};
