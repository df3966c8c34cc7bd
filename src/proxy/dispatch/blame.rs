//! Applies a failure to a backend's health: outlier ejection, back-off or neither. Input: what the
//! failure is evidence of, as classified by `tidegate_engine::attribute`.

use std::fmt::Display;
use std::sync::Arc;
use tidegate_types::Seconds;

use crate::backends::fleet::{Backend, EVERYONE};
use crate::dispatch::context::Proxy;
use crate::telemetry::control_events::ControlEvent;
use crate::upstream::failure::LegProblem;

/// Records a failure that the engine caused.
pub(crate) fn engine(proxy: &Proxy, backend: &Backend, why: &dyn Display) {
    let now = proxy.clock.now();
    if !backend.health.failed(now) || !may_eject(proxy, backend) {
        return;
    }
    let (requests, failures) = backend.health.recent(now);
    if let Some(span) = backend.health.eject(now) {
        let reason = format!("{failures} of {requests} requests failed, the last: {why}");
        tracing::warn!(backend = %backend.name, seconds = span.get(), "backend is ejected: {reason}");
        backend.health.set_reason(reason);
        proxy.report(ControlEvent::HealthChanged);
    }
}

/// Records a failure to connect. A refused connection marks the backend as down at once; other failures
/// count towards its ejection.
pub(crate) fn unreachable(proxy: &Proxy, backend: &Backend, problem: &LegProblem) {
    if problem.is_refused() {
        down(proxy, backend, problem);
    } else {
        engine(proxy, backend, problem);
    }
}

/// Marks a backend that refuses connections as down.
fn down(proxy: &Proxy, backend: &Backend, why: &dyn Display) {
    if backend.health.refused() {
        let reason = why.to_string();
        tracing::warn!(backend = %backend.name, "backend is down: {reason}");
        backend.health.set_reason(reason);
        proxy.report(ControlEvent::HealthChanged);
    }
}

/// Records a refusal for overload; `retry_after` is the delay that the engine requested.
pub(crate) fn load(
    proxy: &Proxy,
    backend: &Backend,
    retry_after: Option<Seconds>,
    why: &dyn Display,
) {
    let now = proxy.clock.now();
    let was = backend.health.is_busy(now);
    let span = backend.health.back_off(now, retry_after);
    if !was {
        tracing::info!(backend = %backend.name, seconds = span.get(), "backend is in back-off: {why}");
        backend.health.set_reason(why.to_string());
    }
}

/// Returns whether the backend may be ejected: the ejected share of each of its pools stays within
/// the panic threshold, and another member is healthy.
fn may_eject(proxy: &Proxy, backend: &Backend) -> bool {
    let table = proxy.fleet.table();
    // The pool of all backends serves requests without a model name; it counts only if there is no
    // other pool.
    let named = table.models.is_empty();
    let mut pools = table.pools.iter().filter(|pool| named || pool.id != EVERYONE);
    pools.all(|pool| {
        let members = &pool.backends;
        if !members.contains(&backend.id) {
            return true;
        }
        let others = members.iter().filter(|id| **id != backend.id);
        let backends = proxy.fleet.backends();
        let others: Vec<&Arc<Backend>> = others.map(|id| &backends[id.index()]).collect();
        let ejected = others.iter().filter(|other| other.health.is_ejected()).count() + 1;
        let well = others.iter().any(|other| other.health.is_healthy());
        let most = (members.len() as f64
            * proxy.settings.load().values.outlier_ejection.pool_share_max)
            .floor()
            .max(1.0);
        well && ejected as f64 <= most
    })
}
