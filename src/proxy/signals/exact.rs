//! Exact token counts, where the operator wants them: every stream is asked for the usage so far in
//! each chunk. The client gets what it asked for itself (relay.rs).

use std::sync::Arc;
use tidegate_engine::{UsageRequest, scan, usage_injection};
use tidegate_filters::Accepted;

use crate::inbound::Inbound;
use crate::service::Proxy;

/// Ask for exact counts. What the client itself wished for, if the engine will count; the filters
/// have seen its own body.
pub fn ask(
    proxy: &Proxy,
    inbound: &mut Inbound,
    accepted: &mut Arc<Accepted>,
) -> Option<UsageRequest> {
    let asked = accepted.scan.as_ref().filter(|_| proxy.signals.counts_exactly())?;
    let usage_request = UsageRequest::of(asked, &inbound.body);
    let Some(body) = usage_injection::inject_usage_request(&inbound.body, asked) else {
        let counts = asked.stream && asked.n == 1 && usage_request == UsageRequest::Every;
        return counts.then_some(usage_request);
    };
    // An edited body reads as well as the one before.
    let again = scan(accepted.endpoint, &body).ok()?;
    inbound.body = body;
    Arc::make_mut(accepted).scan = Some(again);
    Some(usage_request)
}
