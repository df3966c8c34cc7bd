//! The configuration: its schema, its defaults, and validation that reports all errors at once.
//!
//! - [`schema`]: the sections and their keys, one struct a section
//! - [`defaults`]: every default with its reason
//! - `profiles`: built-in engine profiles by name
//! - [`parse`]: parses TOML and reports all errors at once; `tree` keeps line numbers
//! - `problem`: a configuration error, formatted on one line
//! - `validate`: constraints that types do not express
//! - [`discovered`]: expands an entry to discovered backends
//! - [`reconcile`]: desired backends of several sources in, changes out
//! - [`reload`]: the changes between two versions of the settings, and those that need a restart
//! - [`convert`]: settings to the parameter types of other crates
//!
//! The crate is pure: callers read files and pass their text.
#![warn(missing_docs)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod convert;
pub mod defaults;
pub mod discovered;
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

pub use parse::backends_of;
pub use problem::{Problem, joined};
pub use schema::{
    AccessLog, AdminSettings, AuthSettings, BackendSettings, ClientAuth, Connector, CorsSettings,
    DirectorySettings, DnsSettings, EngineName, GatewaySettings, HalfClose, KeySettings,
    KubernetesSettings, KvRole, LeaseSettings, LogFormat, LogSettings, ModelSettings,
    PlacementSettings, PlannerSettings, PodSettings, PrefixSettings, Preset, ProbeSettings,
    QueueSettings, RetrySettings, RoleLabelSettings, ScheduleStyle, Secret, ServerSettings,
    Settings, SidecarSettings, SignalSettings, SloClassSettings, SloSettings, TlsSettings,
    UpstreamSettings,
};
pub use validate::check_base_url;
