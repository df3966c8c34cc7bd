//! Export of spans over OTLP (OpenTelemetry's protocol): HTTP with JSON. A request that ends hands its
//! times over in one queue; `process/span_export.rs` makes spans of them and sends these in batches.
//! Requests wait for nothing, and spans that find the queue full are dropped and counted.
//!
//! - `environment`: the `OTEL_*` variables
//! - `queue`: the queue between requests and exporter
//! - `ended`: ended requests and flips, and their spans
//! - `encode`: spans as OTLP's JSON

pub(crate) mod encode;
pub(crate) mod ended;
pub(crate) mod environment;
pub(crate) mod queue;

pub(crate) use ended::EndedWork;
pub(crate) use environment::{Environment, OtlpSettings};
pub(crate) use queue::SpanQueue;
