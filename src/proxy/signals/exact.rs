//! Exact token counts, where the operator wants them: every stream is asked for the usage so far in
//! each chunk. The client gets what it asked for itself (relay.rs).

use std::sync::Arc;
use tidegate_engine::{Wish, exact, scan};
use tidegate_filters::Accepted;

use crate::inbound::Inbound;
use crate::service::Proxy;

/// Ask for exact counts. What the client itself wished for, if the engine will count; the filters
/// have seen its own body.
pub fn ask(proxy: &Proxy, inbound: &mut Inbound, accepted: &mut Arc<Accepted>) -> Option<Wish> {
    let asked = accepted.scan.as_ref().filter(|_| proxy.signals.counts_exactly())?;
    let wish = Wish::of(asked, &inbound.body);
    let Some(body) = exact::asking(&inbound.body, asked) else {
        let counts = asked.stream && asked.n == 1 && wish == Wish::Every;
        return counts.then_some(wish);
    };
    // An edited body reads as well as the one before.
    let again = scan(accepted.endpoint, &body).ok()?;
    inbound.body = body;
    Arc::make_mut(accepted).scan = Some(again);
    Some(wish)
}
