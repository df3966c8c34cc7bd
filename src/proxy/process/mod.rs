//! The process: start, files, the admin address, reload, hand-over and shutdown.

pub(crate) mod admin;
pub(crate) mod background;
mod config_file;
mod desired;
mod directories;
mod factory;
mod file_access;
mod file_references;
pub mod files;
mod first_fleet;
#[cfg(feature = "kubernetes")]
pub(crate) mod gateway_lease;
pub(crate) mod gateways;
pub(crate) mod handover;
mod names;
#[cfg(feature = "kubernetes")]
mod pods;
#[cfg(feature = "kubernetes")]
pub(crate) mod pool_pods;
mod prompt_calibration;
pub(crate) mod reload;
#[cfg(feature = "kubernetes")]
pub(crate) mod role_labels;
pub(crate) mod server;
pub(crate) mod shutdown;
pub(crate) mod sources;
#[cfg(feature = "otlp")]
pub(crate) mod span_export;
mod srv;
pub(crate) mod start;
pub(crate) mod start_error;
mod trials;
