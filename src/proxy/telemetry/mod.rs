//! Observability: metrics, logs, the journal of role changes, recordings; and the events for the control
//! loop.

pub(crate) mod access_log;
pub(crate) mod arrivals;
pub(crate) mod backend_series;
pub(crate) mod control_events;
pub(crate) mod descriptions;
pub(crate) mod history;
pub(crate) mod journal;
pub mod log;
pub(crate) mod metrics;
#[cfg(feature = "otlp")]
pub(crate) mod otlp;
pub(crate) mod reaction_time;
pub(crate) mod recent;
pub(crate) mod recorder;
pub(crate) mod recording;
pub(crate) mod request_log;
