//! Usage injection: with `signals.exact_counts`, each streaming request is edited so that the engine
//! reports its usage in every chunk. `event_relay.rs` removes what the client did not request.

use std::sync::Arc;
use tidegate_engine::{UsageRequest, scan, usage_injection};
use tidegate_filters::Accepted;

use crate::dispatch::context::Proxy;
use crate::dispatch::inbound::Inbound;

/// Requests usage in every chunk by editing the body. Returns what the client itself requested if
/// the engine will count, else `None`. The filters have already seen the client's own body.
pub fn inject(
    proxy: &Proxy,
    inbound: &mut Inbound,
    accepted: &mut Arc<Accepted>,
) -> Option<UsageRequest> {
    let scan_before = accepted.scan.as_ref().filter(|_| proxy.signals.counts_exactly())?;
    let usage_request = UsageRequest::of(scan_before, &inbound.body);
    let Some(body) = usage_injection::inject_usage_request(&inbound.body, scan_before) else {
        let counts =
            scan_before.stream && scan_before.n == 1 && usage_request == UsageRequest::Every;
        return counts.then_some(usage_request);
    };
    // The edited body must parse like the original.
    let again = scan(accepted.endpoint, &body).ok()?;
    inbound.body = body;
    Arc::make_mut(accepted).scan = Some(again);
    Some(usage_request)
}
