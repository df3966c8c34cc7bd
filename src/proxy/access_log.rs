//! The access log: one event a request, written on settlement. Fields only; the subscriber formats
//! them.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tidegate_types::{Moment, Seconds};

use crate::settle::Record;

/// The tracing target of access log events, which the settings route.
pub const TARGET: &str = "tidegate::access";

/// Whether the access log is enabled. Checked first, because tracing builds an event before filters
/// see it.
static ON: AtomicBool = AtomicBool::new(false);

/// Turns the access log on or off.
pub fn turn(on: bool) {
    ON.store(on, Relaxed);
}

/// Writes the event of a request that ended at `now`.
pub fn write(record: &Record, now: Moment) {
    if !ON.load(Relaxed) {
        return;
    }
    let millis = |span: Option<Seconds>| span.map(|span| (span.as_millis() * 1e3).round() / 1e3);
    let name = |backend: &Option<std::sync::Arc<crate::fleet::Backend>>| {
        backend.as_ref().map(|backend| backend.name.to_string())
    };
    let accepted = &record.accepted;
    tracing::info!(
        target: TARGET,
        // Recorded as strings instead of by `Display`: clients choose these values, and the text
        // format quotes strings.
        request_id = &*record.live.name,
        trace = accepted.traceparent.as_str(),
        tenant = accepted.tenant.as_str(),
        client_subject = record.subject.as_deref(),
        endpoint = accepted.endpoint.as_str(),
        model = record.live.model.as_deref(),
        status = record.status,
        ended = record.ended.as_str(),
        problem = record.problem.as_deref(),
        attempts = record.notes.attempts,
        prefill_backend = name(&record.notes.prefill_on),
        backend = name(&record.notes.decode_on),
        prompt_tokens = record.usage.map_or(record.live.prompt, |usage| usage.prompt).get(),
        prompt_exact = accepted.prompt.exact,
        cached_tokens = record.notes.predicted.map(|predicted| predicted.cached.get()),
        output_tokens = record.output().get(),
        queued_ms = millis(record.queued()),
        ttft_ms = millis(record.ttft()),
        tpot_ms = millis(record.tpot()),
        duration_ms = millis(Some(now - record.live.arrived)),
    );
}
