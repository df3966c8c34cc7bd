//! One line a request, written when it settles. Fields only; the format is the subscriber's.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tidegate_types::{Moment, Seconds};

use crate::settle::Record;

/// The target that settings turn on, off or elsewhere.
pub const TARGET: &str = "tidegate::access";

/// Does anybody read it? The target alone does not tell: an event is made before its layers are asked.
static ON: AtomicBool = AtomicBool::new(false);

/// Lines are written from now on, or none.
pub fn turn(on: bool) {
    ON.store(on, Relaxed);
}

/// Write the line of a request that ended at `now`.
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
        // Strings and not by `Display`: the text format quotes those, and a client chooses them.
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
