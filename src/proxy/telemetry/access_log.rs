//! The access log: one event per request, written on settlement. The subscriber formats the fields.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tidegate_types::{Seconds, Tokens};

use crate::backends::fleet::Backend;
use crate::telemetry::request_log::RequestLog;

/// The tracing target of access log events, which the settings route.
pub const TARGET: &str = "tidegate::access";

/// Whether the access log is enabled. Checked first, because tracing builds an event before its filters
/// run.
static ON: AtomicBool = AtomicBool::new(false);

/// Turns the access log on or off.
pub fn set_enabled(on: bool) {
    ON.store(on, Relaxed);
}

/// Writes the event of a request that has ended.
pub fn write(log: &RequestLog<'_>) {
    if !ON.load(Relaxed) {
        return;
    }
    let millis = |span: Option<Seconds>| span.map(|span| (span.as_millis() * 1e3).round() / 1e3);
    let name = |backend: Option<&Backend>| backend.map(|backend| backend.name.to_string());
    let accepted = log.accepted;
    tracing::info!(
        target: TARGET,
        // Passed as strings and not by `Display`: clients choose the values, and the text format
        // quotes strings.
        request_id = &*log.live.name,
        trace = accepted.traceparent.as_str(),
        tenant = accepted.tenant.as_str(),
        client_subject = log.subject,
        endpoint = accepted.endpoint.as_str(),
        model = log.live.model.as_deref(),
        status = log.status,
        ended = log.outcome.as_str(),
        problem = log.problem,
        attempts = log.attempts,
        prefill_backend = name(log.prefill_on),
        backend = name(log.decode_on),
        prompt_tokens = log.prompt.get(),
        prompt_exact = accepted.prompt.exact,
        cached_tokens = log.cached.map(Tokens::get),
        output_tokens = log.output.get(),
        queued_ms = millis(log.queued),
        ttft_ms = millis(log.ttft),
        tpot_ms = millis(log.tpot),
        gap_max_ms = millis(log.live.gap_max()),
        duration_ms = millis(Some(log.duration)),
    );
}
